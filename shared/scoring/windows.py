"""Scoring windows: their plan, in which every symbol of a stream counts exactly once, and the evidence kept of them.

Windows of seq_len symbols advance by a stride (docs/techniques.md 1.5). The first counts all its symbols, each
later one its last `stride`, which have the most context. The last window may reach past the end of the
stream; what lies there is padding, which a causal model cannot see from the symbols that count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import UserError

# The least number of windows kept for the audit, if there are that many.
MIN_KEPT = 4
# A window may be longer than the text up to this: what lies behind the text is only padding that costs memory.
MOST_PADDED_SYMBOLS = 65_536


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
    return tuple(each_window(num_symbols, seq_len, stride))


def each_window(num_symbols: int, seq_len: int, stride: int) -> Iterator[Window]:
    """`plan_windows` one by one."""
    if not 1 <= stride <= seq_len:
        raise UserError(f"stride {stride}: must be from 1 to the window of {seq_len} symbols")
    start, counted = 0, 0
    while counted < num_symbols:
        stop = min(start + seq_len, num_symbols)
        yield Window(start, counted, stop)
        start, counted = start + stride, stop


def even_rows(windows: int, most: int) -> int:
    """Windows in each of the fewest passes of at most `most`."""
    return -(-windows // -(-windows // most)) if windows else 0


def check_window(seq_len: int, num_symbols: int) -> None:
    """Raise UserError for a window far longer than the text of `num_symbols`: an artifact of unknown origin may say any
    length, and memory is taken for all of it."""
    if seq_len > max(num_symbols, MOST_PADDED_SYMBOLS):
        raise UserError(
            f"a window of {seq_len:,} symbols for a text of {num_symbols:,}: "
            f"longer than the text, at most {MOST_PADDED_SYMBOLS:,}"
        )


def times_counted(windows: Sequence[Window], num_symbols: int) -> np.ndarray:
    """How often each symbol is counted: [num_symbols] int64. Ranges outside the stream are an assertion error."""
    change = np.zeros(num_symbols + 1, np.int64)
    for window in windows:
        assert 0 <= window.count_start <= window.count_stop <= num_symbols, window
        change[window.count_start] += 1
        change[window.count_stop] -= 1
    return np.cumsum(change)[:-1]


@dataclass(frozen=True)
class PositionSums:
    """Sums over all nats counted at each position of the window: their number, sum and sum of squares, [T] each."""

    counts: np.ndarray
    nats: np.ndarray
    squares: np.ndarray

    @classmethod
    def empty(cls, seq_len: int) -> PositionSums:
        """Sums over nothing."""
        return cls(np.zeros(seq_len, np.int64), np.zeros(seq_len), np.zeros(seq_len))

    def add(self, first: int, nats: np.ndarray) -> None:
        """Count nats [n] float64 at positions first, first + 1, ..."""
        positions = slice(first, first + len(nats))
        self.counts[positions] += 1
        self.nats[positions] += nats
        self.squares[positions] += nats * nats


@dataclass(frozen=True)
class Evidence:
    """`positions` sums the nats by position. `kept` are windows from all over the text with the nats that were counted
    of them, float64; one pass scored `pass_rows` windows."""

    positions: PositionSums
    kept: tuple[tuple[Window, np.ndarray], ...]
    pass_rows: int


NO_EVIDENCE = Evidence(PositionSums.empty(0), (), 0)


def kept_windows(windows: Sequence[Window], pass_rows: int) -> frozenset[Window]:
    """The windows to keep, at equal distances from first to last: as many as fill one pass, or several small ones."""
    count = min(len(windows), -(-MIN_KEPT // pass_rows) * pass_rows)
    return frozenset(windows[index] for index in np.linspace(0, len(windows) - 1, count).round().astype(int).tolist())
