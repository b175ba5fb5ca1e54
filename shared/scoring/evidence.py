"""Evidence that scoring keeps for the audit: nats by position in the window, and some windows as scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.scoring.windows import Window

# The least number of windows kept, if there are that many.
MIN_KEPT = 4


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
