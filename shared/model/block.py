"""One transformer block, of the trunk or of the local decoder (docs/techniques.md 3.1)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.attention import attend
from shared.model.block_shape import BlockShape
from shared.model.mixers import mix
from shared.model.trunk_context import TrunkContext
from shared.ops import Array, Ops
from shared.spec import ModelSpec


def run_block(
    ops: Ops,
    model: ModelSpec,
    shape: BlockShape,
    params: Mapping[str, Array],
    prefix: str,
    x: Array,
    context: TrunkContext,
) -> Array:
    """One pre-norm block on x [B, T, D]: h = x + a * Attention(rms(x)); h + m * MLP(rms(h))."""
    x = x + attention_branch(ops, model, shape, params, prefix, x, context)
    return x + mlp_branch(ops, model, shape, params, prefix, x)


def attention_branch(
    ops: Ops,
    model: ModelSpec,
    shape: BlockShape,
    params: Mapping[str, Array],
    prefix: str,
    x: Array,
    context: TrunkContext,
) -> Array:
    """a * Attention(rms(x)) of x [B, T, D], with the learned scale a [D]; or of what the layer has for attention."""
    if shape.mixer != "attention":
        mixed = mix(ops, model, shape, params, prefix, _normalised(ops, model, shape, x))
        return ops.cast_like(params[f"{prefix}.{shape.mixer}.scale"], x) * mixed
    attention = attend(ops, model, shape, params, f"{prefix}.attn", _normalised(ops, model, shape, x), context)
    return ops.cast_like(params[f"{prefix}.attn.scale"], x) * attention


def mlp_branch(
    ops: Ops, model: ModelSpec, shape: BlockShape, params: Mapping[str, Array], prefix: str, x: Array
) -> Array:
    """m * MLP(rms(x)) of x [B, T, D], with the learned scale m [D]."""
    mlp = ops.leaky_relu_squared_mlp(
        _normalised(ops, model, shape, x),
        params[f"{prefix}.mlp.up_proj.weight"],
        params[f"{prefix}.mlp.down_proj.weight"],
        model.mlp_negative_slope,
    )
    return ops.cast_like(params[f"{prefix}.mlp.scale"], x) * mlp


def _normalised(ops: Ops, model: ModelSpec, shape: BlockShape, x: Array) -> Array:
    """rms(x), times the block's norm scale where it has one."""
    normalised = ops.rms_norm(x, model.norm_eps)
    return normalised if shape.norm_scale == 1.0 else shape.norm_scale * normalised
