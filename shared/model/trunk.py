"""The trunk: transformer blocks with U-Net skips and a mix of the input (FEATURES 3.1)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.manifest import BlockShape, num_skips, trunk_block_shape
from shared.ops import Array, Ops
from shared.spec import ModelSpec


def run_trunk(ops: Ops, model: ModelSpec, params: Mapping[str, Array], x0: Array) -> Array:
    """Normalised trunk outputs [B, N, D] of inputs x0 [B, N, D]; row i depends on rows <= i."""
    shape = trunk_block_shape(model)
    skips: list[Array] = []
    x = x0
    for layer in range(model.num_layers):
        decoder_layer = layer - model.num_layers // 2
        if 0 <= decoder_layer < num_skips(model):
            x = x + ops.cast_like(params[f"skips.{decoder_layer}.weight"], x) * skips.pop()
        prefix = f"layers.{layer}"
        if model.resid_mix:
            mix = ops.cast_like(params[f"{prefix}.resid_mix"], x)
            x = mix[0] * x + mix[1] * x0
        x = run_block(ops, model, shape, params, prefix, x, rotate=True)
        if decoder_layer < 0:
            skips.append(x)
    return ops.rms_norm(x, model.norm_eps)


def run_block(
    ops: Ops, model: ModelSpec, shape: BlockShape, params: Mapping[str, Array], prefix: str, x: Array, *, rotate: bool
) -> Array:
    """One pre-norm block on x [B, T, D]: h = x + a * Attention(rms(x)); h + m * MLP(rms(h))."""
    attention = _attention(ops, model, shape, params, f"{prefix}.attn", ops.rms_norm(x, model.norm_eps), rotate)
    x = x + ops.cast_like(params[f"{prefix}.attn.scale"], x) * attention
    mlp = ops.leaky_relu_squared_mlp(
        ops.rms_norm(x, model.norm_eps),
        params[f"{prefix}.mlp.up_proj.weight"],
        params[f"{prefix}.mlp.down_proj.weight"],
        model.mlp_negative_slope,
    )
    return x + ops.cast_like(params[f"{prefix}.mlp.scale"], x) * mlp


def _attention(
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
