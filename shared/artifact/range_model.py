"""Adaptive probabilities of integer codes, in integers alone (docs/techniques.md 11.3).

A context is an expected magnitude, one of NUM_BINS on a scale of eight bins per octave from 2^-7. Each context counts
the codes seen in it, starting from a Gaussian of its magnitude, and a table of frequencies that add up to 2^14 is made
of the counts from time to time. A code that a context has not counted has no frequency: it is sent as ESCAPE and eight
plain bits, and counted from then on, so wide alphabets cost nothing where they are not used.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.quantisers.code_lengths import BINS_PER_OCTAVE, ESCAPE_COUNT, INCREMENT, NUM_BINS, ZERO_BIN

NUM_SYMBOLS = 256
ESCAPE = 0
"""A symbol is a code plus 128. The place of code -128, which is always escaped, means that any code follows."""

PRECISION = 14
TOTAL = 1 << PRECISION

PRIOR_TOTAL = 1 << 16
FORGET_ABOVE = INCREMENT << 17
"""A context that has counted about 2^17 codes halves its counts, so that late tensors are not read by early ones."""

# round(2^16 * 2^(-i / 16))
_ROOTS = np.array(
    [65536, 62757, 60097, 57549, 55109, 52772, 50535, 48393, 46341, 44376, 42495, 40693, 38968, 37316, 35734, 34219]
)


def log2_64ths(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """floor(64 log2 v) of positive integers below 2^62, int64, by squaring: no function of a library."""
    result = np.zeros(values.shape, np.int64)
    x = values.astype(np.int64)
    for shift in (32, 16, 8, 4, 2, 1):
        large = x >= np.int64(1) << np.int64(shift)
        result += np.where(large, shift, 0)
        x = np.where(large, x >> shift, x)
    # v / 2^result as a fixed-point number of 30 bits in [1, 2): what the shifts dropped is needed again.
    x = np.where(result > 30, values >> np.maximum(result - 30, 0), values << np.maximum(30 - result, 0))
    for _ in range(6):
        x = (x * x) >> 30
        large = x >= 1 << 31
        result = 2 * result + large
        x = np.where(large, x >> 1, x)
    return result


def power_of_two(sixteenths: NDArray[np.int64]) -> NDArray[np.int64]:
    """2^(30 - u / 16) of exponents u >= 0 in sixteenths, int64; 0 beyond 30 bits."""
    return np.asarray((_ROOTS[sixteenths & 15] << 14) >> np.minimum(sixteenths >> 4, 40))


@lru_cache(maxsize=1)
def prior_counts() -> NDArray[np.int64]:
    """Counts before anything is seen, int64 [NUM_BINS, NUM_SYMBOLS]: p(k) ~ 2^(-a k^2).

    The steepness a is the one by which the mean magnitude is that of the bin, found by bisection in units of 2^-24.
    """
    k = np.abs(np.arange(NUM_SYMBOLS) - 128)
    # The magnitude of each bin in units of 2^-16.
    wanted = power_of_two(16 * 14 - 16 // BINS_PER_OCTAVE * (np.arange(NUM_BINS) - ZERO_BIN))
    low, high = np.zeros(NUM_BINS, np.int64), np.full(NUM_BINS, 256 << 20)
    for _ in range(28):
        middle = (low + high) >> 1
        shares = _shares(middle, k)
        is_wide = (shares * k).sum(1) > wanted * (shares.sum(1) >> 16)
        low, high = np.where(is_wide, middle, low), np.where(is_wide, high, middle)
    shares = _shares(high, k)
    counts = shares * PRIOR_TOTAL // shares.sum(1, keepdims=True)
    counts[:, ESCAPE] = ESCAPE_COUNT
    return counts


def _shares(steepness: NDArray[np.int64], k: NDArray[np.int64]) -> NDArray[np.int64]:
    """Relative probabilities of magnitudes k in each bin, up to 2^30."""
    exponent = (steepness[:, None] * k * k) >> 20
    return power_of_two(exponent)


class AdaptiveModel:
    """Counts and frequency tables of a number of contexts, each with the prior of a bin.

    `frequencies` int64 [contexts * NUM_SYMBOLS] and `starts`, the sums before each; `symbols` uint8
    [contexts * TOTAL]: the symbol of each of the TOTAL slots.
    """

    def __init__(self, num_sets: int = 1) -> None:
        self._counts = np.concatenate([prior_counts()] * num_sets)
        contexts = len(self._counts)
        self.frequencies = np.zeros(contexts * NUM_SYMBOLS, np.int64)
        self.starts = np.zeros(contexts * NUM_SYMBOLS, np.int64)
        self.symbols = np.zeros(contexts * TOTAL, np.uint8)
        self._is_stale = np.ones(contexts, bool)
        self.num_counted = 0

    def refresh(self, contexts: NDArray[np.integer]) -> None:
        """Make the tables of the contexts that come next, where something was counted since they were made."""
        needed = np.flatnonzero(np.bincount(contexts, minlength=len(self._counts)).astype(bool) & self._is_stale)
        self._is_stale[needed] = False
        frequencies = normalised(self._counts[needed])
        self.frequencies.reshape(-1, NUM_SYMBOLS)[needed] = frequencies
        self.starts.reshape(-1, NUM_SYMBOLS)[needed] = np.cumsum(frequencies, axis=1) - frequencies
        names = np.tile(np.arange(NUM_SYMBOLS, dtype=np.uint8), len(needed))
        self.symbols.reshape(-1, TOTAL)[needed] = np.repeat(names, frequencies.reshape(-1)).reshape(-1, TOTAL)

    def count(self, contexts: NDArray[np.integer], symbols: NDArray[np.uint8]) -> None:
        """Learn from symbols coded in contexts."""
        found = np.bincount(contexts.astype(np.int64) * NUM_SYMBOLS + symbols, minlength=self._counts.size)
        found = found.reshape(self._counts.shape)
        self.num_counted += len(symbols)
        seen = found.any(axis=1)
        self._counts += INCREMENT * found
        full = self._counts.sum(1) > FORGET_ABOVE
        self._counts[full] -= self._counts[full] >> 1
        self._is_stale |= seen


def normalised(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frequencies of rows of counts [N, S] that add up to TOTAL: 0 for a count of 0, else at least 1."""
    totals = counts.sum(1, keepdims=True)
    # At most this many are raised to 1, so the rest shares what is left and the sum cannot exceed TOTAL.
    raised = ((counts > 0) & (counts * (TOTAL - NUM_SYMBOLS) < totals)).sum(1, keepdims=True)
    frequencies = np.maximum(counts * (TOTAL - raised) // totals, counts > 0)
    largest = counts.argmax(1)
    frequencies[np.arange(len(counts)), largest] += TOTAL - frequencies.sum(1)
    return np.asarray(frequencies)
