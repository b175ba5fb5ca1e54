"""One transformer block, of the trunk or of the local decoder (FEATURES 3.1)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.attention import attend
from shared.model.manifest import BlockShape
from shared.ops import Array, Ops
from shared.spec import ModelSpec


def run_block(
    ops: Ops, model: ModelSpec, shape: BlockShape, params: Mapping[str, Array], prefix: str, x: Array, *, rotate: bool
) -> Array:
    """One pre-norm block on x [B, T, D]: h = x + a * Attention(rms(x)); h + m * MLP(rms(h))."""
    attention = attend(ops, model, shape, params, f"{prefix}.attn", ops.rms_norm(x, model.norm_eps), rotate)
    x = x + ops.cast_like(params[f"{prefix}.attn.scale"], x) * attention
    mlp = ops.leaky_relu_squared_mlp(
        ops.rms_norm(x, model.norm_eps),
        params[f"{prefix}.mlp.up_proj.weight"],
        params[f"{prefix}.mlp.down_proj.weight"],
        model.mlp_negative_slope,
    )
    return x + ops.cast_like(params[f"{prefix}.mlp.scale"], x) * mlp
