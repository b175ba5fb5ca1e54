"""Parallel residuals: attention and MLP of one block side by side (docs/techniques.md 6.3)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.block import attention_branch, mlp_branch
from shared.model.block_shape import BlockShape
from shared.model.trunk_context import TrunkContext
from shared.ops import Array, Ops
from shared.spec import ModelSpec


def palm_block(
    ops: Ops,
    model: ModelSpec,
    shape: BlockShape,
    params: Mapping[str, Array],
    prefix: str,
    x: Array,
    context: TrunkContext,
) -> Array:
    """x + A(rms(x)) + M(rms(x)) for x [B, N, D]: both read the block's input."""
    attention = attention_branch(ops, model, shape, params, prefix, x, context)
    return x + attention + mlp_branch(ops, model, shape, params, prefix, x)


def two_lane_block(
    ops: Ops,
    model: ModelSpec,
    shape: BlockShape,
    params: Mapping[str, Array],
    prefix: str,
    lanes: tuple[Array, Array],
    attention_input: Array,
    context: TrunkContext,
) -> tuple[Array, Array]:
    """Both lanes [B, N, D] after the block: lane k is r[k] lane k + p[0, k] A + p[1, k] M.

    A reads `attention_input`, which is lane 0 or its mix with x0; M reads lane 1.
    """
    attention = attention_branch(ops, model, shape, params, prefix, attention_input, context)
    mlp = mlp_branch(ops, model, shape, params, prefix, lanes[1])
    keep = ops.cast_like(params[f"{prefix}.lanes.resid"], attention)
    post = ops.cast_like(params[f"{prefix}.lanes.post"], attention)
    first, second = (keep[lane] * lanes[lane] + post[0, lane] * attention + post[1, lane] * mlp for lane in (0, 1))
    return first, second
