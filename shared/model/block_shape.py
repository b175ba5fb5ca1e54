"""The widths of a block: what its parameters are listed from, and what it computes with."""

from __future__ import annotations

from dataclasses import dataclass

from shared.model.attention_addons import AttentionAddons, attention_addons
from shared.spec import ModelSpec
from shared.spec.mixers import MixerKind


@dataclass(frozen=True)
class BlockShape:
    """Widths of one transformer block, of the trunk or of the local decoder, and the factor on its norms."""

    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    norm_scale: float
    attention: AttentionAddons
    mixer: MixerKind = "attention"
    state_dim: int = 0


def trunk_block_shape(model: ModelSpec, layer: int) -> BlockShape:
    """Shape of a trunk block."""
    mlp_dim = model.mlp_dims[layer] if model.mlp_dims else model.mlp_dim
    norm_scale = (layer + 1) ** -0.5 if model.ln_scale else 1.0
    return BlockShape(
        model.model_dim,
        model.num_heads,
        model.num_kv_heads,
        model.head_dim,
        mlp_dim,
        norm_scale,
        attention_addons(model, layer),
        model.mixers[layer] if model.mixers else "attention",
        model.state_dim,
    )


def decoder_block_shape(model: ModelSpec) -> BlockShape:
    """Widths of a block of the local autoregressive decoder (plain multi-head attention)."""
    decoder = model.decoder
    heads = decoder.num_heads
    # Add-ons made here, not a default: torch.compile breaks the graph at an object that it did not see being made.
    return BlockShape(decoder.dim, heads, heads, decoder.dim // heads, decoder.mlp_dim, 1.0, AttentionAddons())
