"""The plan of scoring windows, in which every symbol of a stream counts exactly once.

Windows of seq_len symbols advance by a stride (docs/techniques.md 1.5). The first counts all its symbols, each
later one its last `stride`, which have the most context. The last window may reach past the end of the
stream; what lies there is padding, which a causal model cannot see from the symbols that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import UserError


@dataclass(frozen=True)
class Window:
    """One window over a stream: it reads [start, start + seq_len) and counts [count_start, count_stop)."""

    start: int
    count_start: int
    count_stop: int


def plan_windows(num_symbols: int, seq_len: int, stride: int) -> tuple[Window, ...]:
    """The windows that count each of `num_symbols` symbols once, in order; none for an empty stream.

    Raises UserError unless 1 <= stride <= seq_len.
    """
    if not 1 <= stride <= seq_len:
        raise UserError(f"stride {stride}: must be from 1 to the window of {seq_len} symbols")
    windows: list[Window] = []
    counted = 0
    while counted < num_symbols:
        start = len(windows) * stride
        stop = min(start + seq_len, num_symbols)
        windows.append(Window(start, counted, stop))
        counted = stop
    return tuple(windows)


def times_counted(windows: Sequence[Window], num_symbols: int) -> np.ndarray:
    """How often each symbol is counted: [num_symbols] int64. Ranges outside the stream are an assertion error."""
    change = np.zeros(num_symbols + 1, np.int64)
    for window in windows:
        assert 0 <= window.count_start <= window.count_stop <= num_symbols, window
        change[window.count_start] += 1
        change[window.count_stop] -= 1
    return np.cumsum(change)[:-1]
