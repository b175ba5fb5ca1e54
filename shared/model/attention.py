"""Causal attention over the heads of one block, with its add-ons (docs/techniques.md 3.2, 5)."""

from __future__ import annotations

from shared.model.block_shape import AttentionAddons
from shared.model.layer import Layer
from shared.ops import Array, Ops


def attend(layer: Layer, x_BTD: Array) -> Array:
    """Causal attention of x, [B, T, D]: per-head norm, then RoPE, then the query gain, then softmax; times the block's
    scale."""
    ops, shape, addons = layer.ops, layer.shape, layer.shape.attention
    batch, time, _ = x_BTD.shape
    weights = [layer.weight(f"attn.{name}") for name in ("q_proj", "k_proj", "v_proj")]
    base = rope_base(layer.model.rope_base, addons, time)
    inputs = (x_BTD, weights, layer.control("attn.q_gain"), addons.rope_dims, base, layer.model.norm_eps)
    y_BTHC = ops.self_attention(*inputs) if _is_plain(addons) else _with_addons(layer, *ops.attention_inputs(*inputs))
    if addons.output_gate != "none":
        y_BTHC = y_BTHC * _output_gate(layer, x_BTD)[..., None]
    y_BTD = y_BTHC.reshape((batch, time, shape.num_heads * shape.head_dim))
    return layer.gained_linear("attn.o_proj", "attn.scale", y_BTD)


def rope_base(base: float, addons: AttentionAddons, positions: int) -> float:
    """The base of RoPE for a sequence of `positions`, stretched beyond the training window (NTK)."""
    known, dims = addons.ntk_positions, addons.rope_dims
    if not 0 < known < positions:
        return base
    # A compiler may hold the length as a symbol; range wants a number, and each length has a table of its own.
    return base * (len(range(positions)) / known) ** (dims / (dims - 2))


def without_own_value(ops: Ops, y_BTHC: Array, v_BTGC: Array, eps: float) -> Array:
    """y less its part along each position's own value v (exclusive self attention): [B, T, H, C]."""
    batch, time, groups, width = v_BTGC.shape
    grouped = y_BTHC.reshape((batch, time, groups, y_BTHC.shape[2] // groups, width))
    # rms(v) is v / |v| times sqrt(C).
    own = ops.rms_norm(v_BTGC, eps)[:, :, :, None]
    along = ops.sum(grouped * own, axes=(-1,), keepdims=True) / width
    return (grouped - along * own).reshape(y_BTHC.shape)


def _is_plain(addons: AttentionAddons) -> bool:
    """Whether nothing reads or changes queries, keys or values but attention to all earlier positions."""
    values = addons.value_embed or addons.gives_values or addons.takes_values
    return not (values or addons.exclusive or addons.window or addons.document_mask)


def _with_addons(layer: Layer, q_BTHC: Array, k_BTGC: Array, v_BTGC: Array) -> Array:
    v_BTGC = _values(layer, v_BTGC)
    y_BTHC = _read(layer, q_BTHC, k_BTGC, v_BTGC)
    if layer.shape.attention.exclusive:
        y_BTHC = without_own_value(layer.ops, y_BTHC, v_BTGC, layer.model.norm_eps)
    return y_BTHC


def _values(layer: Layer, v_BTGC: Array) -> Array:
    """v with value embeddings and the first layer's values, as far as this layer has them."""
    addons, context = layer.shape.attention, layer.context
    if addons.value_embed:
        assert context.value_embeds is not None
        v_BTGC = v_BTGC + layer.control("attn.value_embed_scale", v_BTGC) * context.value_embeds.reshape(v_BTGC.shape)
    if addons.takes_values:
        assert context.first_values is not None
        share = layer.ops.cast_like(layer.ops.sigmoid(layer.control("attn.value_resid")), v_BTGC)
        v_BTGC = v_BTGC + share * context.first_values
    if addons.gives_values and context.first_values is None:
        context.first_values = v_BTGC
    return v_BTGC


def _read(layer: Layer, q_BTHC: Array, k_BTGC: Array, v_BTGC: Array) -> Array:
    addons = layer.shape.attention
    if not addons.window and not addons.document_mask:
        return layer.ops.attention(q_BTHC, k_BTGC, v_BTGC)
    documents = layer.context.documents if addons.document_mask else None
    assert addons.document_mask == (documents is not None)
    return layer.ops.attention(q_BTHC, k_BTGC, v_BTGC, addons.window, documents)


def _output_gate(layer: Layer, x_BTD: Array) -> Array:
    """The factor of every head, [B, T, H], from the block's normalised input."""
    addons = layer.shape.attention
    logits_BTH = layer.linear("attn.gate", x_BTD[..., : addons.gate_dims])
    if addons.output_gate == "attn_out":
        return 2.0 * layer.ops.sigmoid(logits_BTH)
    return layer.ops.sigmoid(addons.gate_scale * logits_BTH if addons.output_gate == "sparse" else logits_BTH)
