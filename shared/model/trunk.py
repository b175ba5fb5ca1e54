"""The trunk: transformer blocks with U-Net skips and a mix of the input (FEATURES 3.1)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.block import run_block
from shared.model.manifest import num_skips, trunk_block_shape
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
