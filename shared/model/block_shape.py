"""The shape of each layer by the spec: the manifest lists its parameters from it, and the layer computes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.spec import ModelSpec
from shared.spec.attention import OutputGate
from shared.spec.mixers import MixerKind

# Standard deviation of a full output gate's initial weights, and the initial scale of value embeddings.
FULL_GATE_STD = 0.01
VALUE_EMBED_SCALE = 0.1
# Standard deviation of the initial table of value embeddings.
VALUE_EMBED_STD = 0.01


@dataclass(frozen=True)
class AttentionAddons:
    """Additions to plain attention (docs/techniques.md 3.3, 5): none by default, and none in a decoder."""

    rope_dims: int = 0
    ntk_positions: int = 0
    window: int = 0
    document_mask: bool = False
    exclusive: bool = False
    value_embed: bool = False
    gives_values: bool = False
    takes_values: bool = False
    output_gate: OutputGate = "none"
    gate_scale: float = 1.0
    gate_dims: int = 0


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
    parallel: Literal["off", "palm", "two_lane"] = "off"


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
        model.parallel.form if layer >= model.parallel.first_layer else "off",
    )


def decoder_block_shape(model: ModelSpec) -> BlockShape:
    """Widths of a block of the local autoregressive decoder (plain multi-head attention)."""
    decoder = model.decoder
    heads = decoder.num_heads
    # Add-ons made here, not a default: torch.compile breaks the graph at an object that it did not see being made.
    return BlockShape(decoder.dim, heads, heads, decoder.dim // heads, decoder.mlp_dim, 1.0, AttentionAddons())


def attention_addons(model: ModelSpec, layer: int) -> AttentionAddons:
    """The add-ons of a trunk layer. With a value residual the first layer gives its values, later ones take them."""
    attention, from_end = model.attention, model.num_layers - layer
    return AttentionAddons(
        rope_dims=attention.rope_dims,
        ntk_positions=attention.ntk_positions,
        window=attention.window,
        document_mask=attention.document_mask,
        exclusive=from_end <= attention.xsa_layers,
        value_embed=from_end <= attention.value_embed_layers,
        gives_values=attention.value_residual and layer == 0,
        takes_values=attention.value_residual and layer > 0,
        output_gate=attention.output_gate,
        gate_scale=attention.gate_scale,
        gate_dims=model.model_dim if attention.output_gate == "full" else attention.gate_dims,
    )
