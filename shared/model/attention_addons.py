"""What the attention of each trunk layer does beyond the plain form, as the spec says (docs/techniques.md 3.3, 5)."""

from __future__ import annotations

from dataclasses import dataclass

from shared.spec import ModelSpec
from shared.spec.attention import OutputGate

# Standard deviation of a full output gate's initial weights, and the initial scale of value embeddings.
FULL_GATE_STD = 0.01
VALUE_EMBED_SCALE = 0.1
# Standard deviation of the initial table of value embeddings.
VALUE_EMBED_STD = 0.01


@dataclass(frozen=True)
class AttentionAddons:
    """The add-ons of one layer; the defaults are those of a local decoder's block, which has none."""

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


def rope_base(base: float, addons: AttentionAddons, positions: int) -> float:
    """The base of RoPE for a sequence of `positions`, stretched beyond the training window (NTK)."""
    known, dims = addons.ntk_positions, addons.rope_dims
    if not 0 < known < positions:
        return base
    # A compiler may hold the length as a symbol; range wants a number, and each length has a table of its own.
    return base * (len(range(positions)) / known) ** (dims / (dims - 2))
