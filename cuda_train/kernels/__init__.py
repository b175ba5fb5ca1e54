"""Triton kernels, for GPUs. Importing this package needs no Triton; each kernel module does."""

from __future__ import annotations

import importlib.util
from functools import lru_cache


@lru_cache(maxsize=1)
def triton_is_installed() -> bool:
    """Whether the kernel modules can be imported: Triton comes with the CUDA builds of torch for Linux."""
    return importlib.util.find_spec("triton") is not None
