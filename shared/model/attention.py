"""Causal attention over the heads of one block, with its add-ons (docs/techniques.md 3.2, 5)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.attention_addons import AttentionAddons, rope_base
from shared.model.block_shape import BlockShape
from shared.model.trunk_context import TrunkContext
from shared.ops import Array, Ops
from shared.spec import ModelSpec


def attend(
    ops: Ops,
    model: ModelSpec,
    shape: BlockShape,
    params: Mapping[str, Array],
    prefix: str,
    x: Array,
    context: TrunkContext,
) -> Array:
    """Causal attention of x [B, T, D]: per-head norm, then RoPE, then the query gain, then softmax."""
    batch, time, _ = x.shape
    addons = shape.attention

    def heads(name: str, count: int) -> Array:
        projected = ops.linear(x, params[f"{prefix}.{name}.weight"])
        return projected.reshape((batch, time, count, shape.head_dim))

    q = ops.rms_norm(heads("q_proj", shape.num_heads), model.norm_eps)
    k = ops.rms_norm(heads("k_proj", shape.num_kv_heads), model.norm_eps)
    v = _values(ops, addons, params, prefix, heads("v_proj", shape.num_kv_heads), context)
    if addons.rope_dims:
        base = rope_base(model.rope_base, addons, time)
        q, k = _turned(ops, q, addons.rope_dims, base), _turned(ops, k, addons.rope_dims, base)
    q = q * ops.cast_like(params[f"{prefix}.q_gain"], q)[:, None]
    y = _read(ops, addons, q, k, v, context)
    if addons.exclusive:
        y = without_own_value(ops, y, v, model.norm_eps)
    if addons.output_gate != "none":
        y = y * _output_gate(ops, addons, params[f"{prefix}.gate.weight"], x)[..., None]
    y = y.reshape((batch, time, shape.num_heads * shape.head_dim))
    return ops.linear(y, params[f"{prefix}.o_proj.weight"])


def without_own_value(ops: Ops, y: Array, v: Array, eps: float) -> Array:
    """y [B, T, H, C] less its part along each position's own value v [B, T, G, C] (exclusive self attention)."""
    batch, time, groups, width = v.shape
    grouped = y.reshape((batch, time, groups, y.shape[2] // groups, width))
    # rms(v) is v / |v| times sqrt(C).
    own = ops.rms_norm(v, eps)[:, :, :, None]
    along = ops.sum(grouped * own, axes=(-1,), keepdims=True) / width
    return (grouped - along * own).reshape(y.shape)


def _values(
    ops: Ops, addons: AttentionAddons, params: Mapping[str, Array], prefix: str, v: Array, context: TrunkContext
) -> Array:
    """v [B, T, G, C] with value embeddings and the first layer's values, as far as this layer has them."""
    if addons.value_embed:
        assert context.value_embeds is not None
        scale = ops.cast_like(params[f"{prefix}.value_embed_scale"], v)
        v = v + scale * context.value_embeds.reshape(v.shape)
    if addons.takes_values:
        assert context.first_values is not None
        v = v + ops.cast_like(ops.sigmoid(params[f"{prefix}.value_resid"]), v) * context.first_values
    if addons.gives_values and context.first_values is None:
        context.first_values = v
    return v


def _turned(ops: Ops, x: Array, dims: int, base: float) -> Array:
    """RoPE on the first `dims` features of every head of x [B, T, H, C]."""
    if dims == x.shape[-1]:
        return ops.rope(x, base)
    return ops.concatenate([ops.rope(x[..., :dims], base), x[..., dims:]], axis=-1)


def _read(ops: Ops, addons: AttentionAddons, q: Array, k: Array, v: Array, context: TrunkContext) -> Array:
    if not addons.window and not addons.document_mask:
        return ops.attention(q, k, v)
    documents = context.documents if addons.document_mask else None
    assert addons.document_mask == (documents is not None)
    return ops.attention(q, k, v, addons.window, documents)


def _output_gate(ops: Ops, addons: AttentionAddons, weight: Array, x: Array) -> Array:
    """The factor of every head, [B, T, H], from the block's normalised input x [B, T, D]."""
    logits = ops.linear(x[..., : addons.gate_dims], weight)
    if addons.output_gate == "attn_out":
        return 2.0 * ops.sigmoid(logits)
    return ops.sigmoid(addons.gate_scale * logits if addons.output_gate == "sparse" else logits)
