"""Which mixer a layer has in place of attention (docs/techniques.md 7)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.block_shape import BlockShape
from shared.model.gated_delta import gated_delta
from shared.model.mamba2 import mamba2
from shared.ops import Array, Ops
from shared.spec import ModelSpec


def mix(ops: Ops, model: ModelSpec, shape: BlockShape, params: Mapping[str, Array], prefix: str, u: Array) -> Array:
    """The output [B, N, D] of a block's mixer with a state, of the block's normalised input u [B, N, D]."""
    if shape.mixer == "mamba2":
        return mamba2(ops, shape, params, f"{prefix}.mamba2", u)
    assert shape.mixer == "gated_delta"
    return gated_delta(ops, shape, params, f"{prefix}.gated_delta", u, model.norm_eps)
