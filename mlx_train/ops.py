"""Which operations the MLX engine uses: MLX's own on a GPU, hand-written ones where a CPU needs them."""

from __future__ import annotations

from mlx_train import device
from mlx_train.cpu_ops import MLXCPUOps
from mlx_train.plain_ops import MLXOps


def make_ops() -> MLXOps:
    """The operations for MLX's default device."""
    return MLXOps() if device.on_gpu() else MLXCPUOps()
