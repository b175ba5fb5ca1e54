"""What the torch engine runs on, and how much memory it used."""

from __future__ import annotations

import os
import platform
import resource
import sys

import torch


def default_device() -> torch.device:
    """The first CUDA GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_gpu() -> bool:
    """Whether torch runs on a GPU here."""
    return default_device().type == "cuda"


def device_name() -> str:
    """The device in words."""
    if on_gpu():
        return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return f"CPU, {os.cpu_count()} threads, {platform.machine()}"


def peak_memory_bytes() -> int:
    """Peak memory in bytes: torch's own count on a GPU, the process's resident memory on a CPU."""
    if on_gpu():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
