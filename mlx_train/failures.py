"""Failures of the GPU, reported in one line: what happened, what is known to help.

MLX raises them as RuntimeError at a later evaluation, and everything that its stream computes from then on fails too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from shared.errors import DeviceError, one_line

P = ParamSpec("P")
R = TypeVar("R")

# How MLX begins what Metal, its allocator and CUDA report (mlx/backend/metal/device.cpp, */allocator.cpp, cuda/utils).
OF_A_DEVICE = re.compile(
    r"\[METAL\]|\[metal::|\[malloc|\b(cu|cuda|cublas\w*|cudnn\w*|nccl)[A-Z]\w*\(.*\) failed", re.DOTALL
)
SMALLER = "take smaller micro-batches (--set training.micro_batch_symbols=N)"
# What is known to help, by what the message says; the first that matches.
ADVICE = {
    "Impacting Interactivity": f"macOS kept the screen responsive: let the display sleep (pmset displaysleepnow) or "
    f"{SMALLER}",
    "Timeout": f"a command ran longer than macOS allows: {SMALLER}",
    "emory|malloc|allocate": f"not enough memory: close other programs or {SMALLER}",
}


def in_words(message: str) -> str | None:
    """What a RuntimeError of MLX says about its GPU, as one line; None where it is about something else."""
    if not OF_A_DEVICE.search(message):
        return None
    advice = next((words for pattern, words in ADVICE.items() if re.search(pattern, message)), "")
    return f"the GPU failed: {one_line(message)}" + (f"; {advice}" if advice else "")


def told(method: Callable[P, R]) -> Callable[P, R]:
    """The method, which raises DeviceError where the GPU has failed. For what waits for the GPU or may do so."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except RuntimeError as error:
            words = in_words(str(error))
            if words is None:
                raise
            raise DeviceError(words) from error

    return call
