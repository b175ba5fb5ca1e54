"""The attention section: add-ons to the plain attention of the trunk (docs/techniques.md 5)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.spec.base import AboveZero, Count, Section, Size, SizeOrZero, require_all

OutputGate = Literal["none", "full", "attn_out", "sparse"]
SmearGate = Literal["none", "v1", "v2"]


class AttentionSpec(Section):
    """Add-ons to the attention of the trunk's layers, all off by default. The local decoder's has none of them.

    A position is a trunk position: it has read the patches before its own; the last of them is its input.
    v [N, G, C] are the values that a layer's attention reads, y [N, H, C] what it returns per head.
    """

    rope_dims: SizeOrZero = Field(
        description="features of each head that RoPE turns, the first ones; 0 is no positional encoding; "
        "default model.head_dim"
    )
    ntk_positions: Count = Field(
        0,
        description="positions n of the training window: in a sequence of L > n positions the base of RoPE is "
        "rope_base * (L / n)^(r / (r - 2)) with r = rope_dims; 0 is off",
    )
    window: Count = Field(0, description="positions that a position reads, itself included; 0 is all")
    document_mask: bool = Field(
        False,
        description="a position reads positions of its own document only: the one its input patch ends in. "
        "Exact with patch_size 1; else a patch that holds the end of one document and the start of the next is "
        "read by the next",
    )
    xsa_layers: Count = Field(
        0,
        description="last layers with exclusive self attention: y loses its part along the position's own value, "
        "y - (y . u) u with u = v / |v|",
    )
    value_embed_dim: SizeOrZero = Field(
        0,
        description="width E of value embeddings, a table [V, E] of its own; 0 is none. v + s * W e, with e the rows "
        "of the input patch's symbols, one W for all layers and a learned s per layer, 0.1 at first",
    )
    value_embed_layers: Count = Field(0, description="last layers whose values get value embeddings")
    value_residual: bool = Field(
        False,
        description="every layer but the first reads v + sigmoid(a) * v0, v0 the values of the first layer; "
        "a learned a per layer, 0 at first",
    )
    output_gate: OutputGate = Field(
        "none",
        description="y * g per head, from the normalised input x of the block. full: g = sigmoid(W x); attn_out: "
        "g = 2 sigmoid(W x[:gate_dims]); sparse: g = sigmoid(gate_scale * W x[:gate_dims]). W is zero at first, "
        "but normal of deviation 0.01 where full",
    )
    gate_scale: AboveZero = Field(
        1.0, description="factor inside the sigmoid of the sparse output gate; below 1 it opens and closes more slowly"
    )
    gate_dims: Size = Field(12, description="leading features that a sparse, attn_out or smear gate reads")


def check_attention(attention: AttentionSpec, num_layers: int, model_dim: int, head_dim: int, smear: SmearGate) -> None:
    """Raise ValueError for add-ons that do not fit the model or each other."""
    rope_dims, narrow = attention.rope_dims, attention.output_gate in ("attn_out", "sparse") or smear == "v2"
    in_layers, embeds = f"at most model.num_layers ({num_layers})", attention.value_embed_dim
    require_all(
        attention,
        "model.attention",
        (
            rope_dims % 2 == 0 and rope_dims <= head_dim,
            "rope_dims",
            f"an even number of at most model.head_dim ({head_dim})",
        ),
        (
            attention.ntk_positions == 0 or rope_dims > 2,
            "ntk_positions",
            f"0, unless model.attention.rope_dims ({rope_dims}) is above 2",
        ),
        (attention.window != 1, "window", "0 or at least 2: with one position nothing is left to attend to"),
        (attention.xsa_layers <= num_layers, "xsa_layers", in_layers),
        (attention.value_embed_layers <= num_layers, "value_embed_layers", in_layers),
        (
            (attention.value_embed_layers > 0) == (embeds > 0),
            "value_embed_layers",
            f"above 0 exactly if model.attention.value_embed_dim ({embeds}) is",
        ),
        (not attention.value_residual or num_layers > 1, "value_residual", "false with a single layer"),
        (not narrow or attention.gate_dims <= model_dim, "gate_dims", f"at most model.model_dim ({model_dim})"),
    )
