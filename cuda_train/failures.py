"""No memory left, reported in one line: what torch says, and what to make smaller."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from shared.errors import DeviceError, one_line
from shared.spec import Spec

# What the allocators of a GPU and of the CPU say (c10/cuda/CUDACachingAllocator.cpp, c10/core/impl/alloc_cpu.cpp).
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
# Behind it torch adds figures of its allocator and a link.
DETAILS = re.compile(r" (Including non-PyTorch|Of the allocated) memory|\n", re.IGNORECASE)


def told(setting: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For a method of an engine whose passes have as many symbols as the setting says: it raises DeviceError where
    memory is not enough for one."""

    def decorated(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(engine: Any, *args: Any) -> Any:
            try:
                return method(engine, *args)
            except (RuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
                    raise
                raise DeviceError(in_words(error, engine.spec, setting)) from error

        return call

    return decorated


def in_words(error: Exception, spec: Spec, setting: str) -> str:
    """The line: half as many symbols, in whole windows, or a smaller model where a pass is one window already."""
    section, _, field = setting.partition(".")
    symbols = getattr(getattr(spec, section), field) or spec.training.batch_symbols
    smaller = max(1, symbols // 2 // spec.model.seq_len) * spec.model.seq_len
    advice = f"take smaller passes (--set {setting}={smaller})" if smaller < symbols else "take a smaller model"
    return f"not enough memory: {one_line(DETAILS.split(str(error))[0])}; close other programs or {advice}"
