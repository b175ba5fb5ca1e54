"""The contexts of a matrix's codes: how large each is expected to be, from its row and its column.

A matrix has a level, the bin (shared.quantisers.code_lengths) of its mean magnitude, and each row and column an offset
in quarters of an octave. A code's bin is level + 2 (row + column): magnitudes are taken for a product of the two. On
trained matrices the codes of a bin are all but Gaussian, and neither their neighbours nor the tensor say more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.artifact.range_model import log2_64ths, power_of_two
from shared.quantisers.code_lengths import BINS_PER_OCTAVE, NUM_BINS, ZERO_BIN

OFFSET_LIMIT = 60
"""Largest offset; 15 octaves are more than codes of eight bits have."""

BINS_PER_OFFSET = 2
"""Bins that an offset of 1 moves."""


@dataclass(frozen=True)
class Magnitudes:
    """Magnitudes of a matrix [R, C]: `level`, a bin; `rows` int64 [R] and `columns` int64 [C], offsets from it."""

    level: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def bins(self) -> NDArray[np.uint8]:
        """The bin of every code, uint8 [R, C]."""
        rows = (self.level + BINS_PER_OFFSET * self.rows).astype(np.int16)
        columns = (BINS_PER_OFFSET * self.columns).astype(np.int16)
        return np.clip(rows[:, None] + columns, 0, NUM_BINS - 1).astype(np.uint8)


def magnitude_class(values: NDArray[np.integer]) -> int:
    """0 for values that are all 0, else 1 + the bin of their mean magnitude."""
    total = int(np.abs(values).sum(dtype=np.int64))
    return 1 + _bin_at(_log2(total) - _log2(len(values))) if total else 0


def magnitudes_of(codes: NDArray[np.int8]) -> Magnitudes:
    """The magnitudes by which the codes of [R, C] and the offsets themselves are shortest together, nearly."""
    sizes = np.abs(codes.astype(np.int16))
    by_row, by_column = sizes.sum(1, dtype=np.int64), sizes.sum(0, dtype=np.int64)
    total = int(by_row.sum())
    mean_log = _log2(total) - _log2(codes.size) if total else 0
    squares = int(np.einsum("rc,rc->", sizes, sizes, dtype=np.int64, casting="unsafe"))
    information = _information_percent(total, squares, codes.size)
    rows = _offsets(by_row, codes.shape[1], mean_log, information)
    columns = _offsets(by_column, codes.shape[0], mean_log, information)
    if not total:
        return Magnitudes(0, rows, columns)
    # The level is the mean magnitude over the mean of 2^(row + column), not over 1.
    scale_log = _log2(int(_powers(rows).sum())) + _log2(int(_powers(columns).sum())) - 2 * 15 * 64
    return Magnitudes(_bin_at(_log2(total) - scale_log), rows, columns)


def _offsets(sums: NDArray[np.int64], count: int, mean_log: int, information: int) -> NDArray[np.int64]:
    """Offsets of rows with sums of `count` magnitudes each. An offset that is off by d octaves costs
    count information d^2 ln 2 / 2 bits, one that is rarer costs more to send: the best of both, in 64ths of a bit."""
    if not sums.any():
        return np.zeros(len(sums), np.int64)
    exact = log2_64ths(4 * sums + 1) - _log2(4 * count) - mean_log
    offsets = np.clip((exact + 8) >> 4, -OFFSET_LIMIT, OFFSET_LIMIT)
    choices = np.arange(offsets.min(), offsets.max() + 1)
    distance = 16 * choices - exact[:, None]
    # 355 / 2^16 is ln 2 / 2 / 64.
    mismatch = (count * information * 355 * distance * distance) // (100 << 16)
    for _ in range(4):
        counts = np.bincount(offsets - choices[0], minlength=len(choices))
        cost = _log2(3 * len(sums)) - log2_64ths(3 * counts + 1)
        offsets = choices[(mismatch + cost).argmin(1)]
    return offsets


def _information_percent(total: int, squares: int, count: int) -> int:
    """Fisher information that one code has about the logarithm of its magnitude, in percent: 2 for a Gaussian."""
    variance = count * squares - total * total
    return min(max(114 * total * total // variance, 1), 200) if variance else 200


def _powers(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """2^15 times two to each offset."""
    return power_of_two(4 * (OFFSET_LIMIT - offsets))


def _bin_at(log: int) -> int:
    """The bin nearest to a logarithm in 64ths."""
    step = 64 // BINS_PER_OCTAVE
    return min(max((log + step // 2) // step + ZERO_BIN, 0), NUM_BINS - 1)


def _log2(value: int) -> int:
    return int(log2_64ths(np.array([value], np.int64))[0])
