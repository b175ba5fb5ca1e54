"""Chooses the operations of the torch engine: torch's own, with Triton's kernels on a GPU where Triton is installed."""

from __future__ import annotations

import torch

from cuda_train.device import default_device
from cuda_train.kernels import triton_is_installed
from cuda_train.plain_ops import TorchOps


def make_ops() -> TorchOps:
    """The operations on the first GPU, with Triton's kernels where Triton is installed, or on the CPU."""
    return ops_for(default_device())


def ops_for(device: torch.device) -> TorchOps:
    """The operations on a device."""
    if device.type == "cuda" and triton_is_installed():
        from cuda_train.fused_ops import FusedTorchOps

        return FusedTorchOps(device)
    return TorchOps(device)
