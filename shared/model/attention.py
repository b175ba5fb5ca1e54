"""Causal attention over the heads of one block (FEATURES 3.1, 3.2)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.manifest import BlockShape
from shared.ops import Array, Ops
from shared.spec import ModelSpec


def attend(
    ops: Ops, model: ModelSpec, shape: BlockShape, params: Mapping[str, Array], prefix: str, x: Array, rotate: bool
) -> Array:
    """Causal attention of x [B, T, D]: per-head norm, then RoPE, then the query gain, then softmax."""
    batch, time, _ = x.shape

    def heads(name: str, count: int) -> Array:
        projected = ops.linear(x, params[f"{prefix}.{name}.weight"])
        return projected.reshape((batch, time, count, shape.head_dim))

    q = ops.rms_norm(heads("q_proj", shape.num_heads), model.norm_eps)
    k = ops.rms_norm(heads("k_proj", shape.num_kv_heads), model.norm_eps)
    v = heads("v_proj", shape.num_kv_heads)
    if rotate:
        q, k = ops.rope(q, model.rope_base), ops.rope(k, model.rope_base)
    q = q * ops.cast_like(params[f"{prefix}.q_gain"], q)[:, None]
    y = ops.attention(q, k, v).reshape((batch, time, shape.num_heads * shape.head_dim))
    return ops.linear(y, params[f"{prefix}.o_proj.weight"])
