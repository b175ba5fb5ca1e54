"""Chooses the operations of the torch engine: torch's own, with Triton's kernels on a GPU that they serve."""

from __future__ import annotations

import torch

from cuda_train.device import default_device
from cuda_train.kernels import triton_is_installed
from cuda_train.plain_ops import TorchOps

# GPUs that multiply bfloat16 matrices (Ampere). On older ones Triton multiplies their numbers one by one.
LEAST_CAPABILITY = (8, 0)


def make_ops() -> TorchOps:
    """The operations on the first GPU, with Triton's kernels where they serve it, or on the CPU."""
    return ops_for(default_device())


def ops_for(device: torch.device) -> TorchOps:
    """The operations on a device."""
    has_triton = device.type == "cuda" and triton_is_installed()
    if has_triton and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY:
        from cuda_train.fused_ops import FusedTorchOps

        return FusedTorchOps(device)
    return TorchOps(device)
