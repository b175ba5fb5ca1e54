"""Chooses the operations of the MLX engine: MLX's own on a GPU, hand-written ones where a CPU needs them."""

from __future__ import annotations

import os

from mlx_train import device
from mlx_train.cpu_ops import MLXCPUOps
from mlx_train.plain_ops import MLXOps
from shared.errors import UserError

# 1: a CPU takes the operations of a GPU too, so that they can be tested where there is none.
PLAIN_VARIABLE = "BYTETWIN_MLX_PLAIN"


def make_ops() -> MLXOps:
    """The operations for MLX's default device. Raises UserError for a BYTETWIN_MLX_PLAIN that is neither 0 nor 1."""
    wanted = os.environ.get(PLAIN_VARIABLE, "0")
    if wanted not in ("0", "1"):
        raise UserError(f"{PLAIN_VARIABLE} = {wanted!r}: must be 1 (the operations of a GPU on a CPU) or 0")
    return MLXOps() if device.on_gpu() or wanted == "1" else MLXCPUOps()
