"""From a distribution to integer intervals on which encoder and decoder agree, although each computes it anew.

Symbol s of V has the slots from F(s) to F(s + 1) of [0, M), M a power of two:

    F(v) = floor(C(v) (M - V - 2) + offset) + v,    F(0) = 0,    F(V) = M - 2

with C(v) the probability of all symbols before v in float64. Another machine has another C, off by some 1e-14, and
another F(v) where C(v) (M - V - 2) + offset lies that close to a whole number. Only F(s) and F(s + 1) of the coded
symbol matter. Where the usual offset puts one of them within the tolerance of a whole number the encoder takes another
of three; two borders exclude at most two. It codes one of the last two slots to say so: an escape, which is all the
side information there is, log2(M) bits each time.

Every symbol has a slot at least, which costs V / M of the probability, 2^-14 and less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared import tolerances
from shared.errors import RunError

# The usual offset, and what an escape stands for.
OFFSETS = (0.5, 0.25, 0.75)
ESCAPES = len(OFFSETS) - 1
SYMBOL_BITS = 14
# In slots. Offsets are a quarter apart, so at twice this one of three would always be left.
MOST_TOLERANCE = 1 / 16

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def interval_bits(vocab_size: int) -> int:
    """log2 of M, the number of slots."""
    return SYMBOL_BITS + (vocab_size - 1).bit_length()


def cumulative(log_probs: NDArray[np.floating]) -> Float64:
    """C(1) ... C(V) [..., V] of ln p [..., V]. Raises RunError where the probabilities do not add up to 1."""
    found: Float64 = np.cumsum(np.exp(log_probs, dtype=np.float64), axis=-1)
    if not (np.abs(found[..., -1] - 1.0) <= tolerances.CODING_SUM_ABS).all():
        raise RunError("the probabilities of the model do not add up to 1: nothing can be coded with it")
    return np.minimum(found, 1.0, out=found)


def borders(below: Float64, offset: float | Float64, index: Int64) -> Int64:
    """F(index) of C(index) [...], for 0 <= index < V."""
    found: Int64 = np.floor(below + offset).astype(np.int64) + index
    return found


@dataclass(frozen=True)
class Intervals:
    """The slots of coded symbols: `starts` and `sizes` int64 `[n]`, and `escapes` [n], 0 for the usual offset."""

    starts: Int64
    sizes: Int64
    escapes: Int64


def intervals_of(log_probs: NDArray[np.floating], symbols: NDArray[np.integer], tolerance: float) -> Intervals:
    """The intervals of symbols [n] under ln p [n, V], with no border that an error of `tolerance` in C could move."""
    count, vocab_size = log_probs.shape
    slots = 1 << interval_bits(vocab_size)
    scale = slots - vocab_size - ESCAPES
    assert tolerance * slots <= MOST_TOLERANCE, f"a tolerance of {tolerance} is too wide for {slots} slots"
    ends = cumulative(log_probs)
    at, index = np.arange(count), symbols.astype(np.int64)
    is_first, is_last = index == 0, index == vocab_size - 1
    below = np.where(is_first, 0.0, ends[at, index - 1]) * scale
    # The first and the last border are 0 and M - 2 whatever the rounding.
    above = np.where(is_last, 0.0, ends[at, index]) * scale
    moved = np.stack([below, above]) + np.array(OFFSETS)[:, None, None]
    is_safe = (np.abs(moved - np.rint(moved)) > tolerance * scale).all(axis=1)
    escapes = is_safe.argmax(axis=0)
    offsets = np.array(OFFSETS)[escapes]
    starts = borders(below, offsets, index)
    stops = np.where(is_last, slots - ESCAPES, borders(above, offsets, index + 1))
    return Intervals(starts, stops - starts, escapes)


def stops_of(log_probs: NDArray[np.floating], offset: float = OFFSETS[0]) -> Int64:
    """F(1) ... F(V) [..., V] of ln p [..., V]."""
    vocab_size = log_probs.shape[-1]
    slots = 1 << interval_bits(vocab_size)
    scale = slots - vocab_size - ESCAPES
    found = borders(cumulative(log_probs) * scale, offset, np.arange(1, vocab_size + 1))
    found[..., -1] = slots - ESCAPES
    return found
