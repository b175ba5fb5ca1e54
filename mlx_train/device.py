"""What the MLX engine runs on, and how much memory it used."""

from __future__ import annotations

import os
import platform
import resource
import sys

import mlx.core as mx


def on_gpu() -> bool:
    """Whether MLX runs on a GPU (Metal) here."""
    return mx.default_device().type == mx.DeviceType.gpu


def device_name() -> str:
    """The device in words."""
    if on_gpu():
        return f"{mx.device_info().get('device_name', 'GPU')} (Metal)"
    return f"CPU, {os.cpu_count()} threads, {platform.machine()}"


def peak_memory_bytes() -> int:
    """Peak memory in bytes: MLX's own count on a GPU, the process's resident memory on a CPU."""
    if on_gpu():
        return int(mx.get_peak_memory())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
