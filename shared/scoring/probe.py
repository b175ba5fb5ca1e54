"""The probe of the audit: windows, replacements for their symbols, and the order of positions to disturb."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from shared.spec import Spec

# The least number of rows: two of text and two of random symbols.
MIN_ROWS = 4
# Most bytes of float32 log-probabilities on the host in one pass, which has one row at least.
LOG_PROBS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Probe:
    """Windows to disturb: `x` [R, T], and their replacements, `targets` [R, T] at the position that is
    disturbed and `other` [R, T] after it. All int32; both differ from x everywhere. Rows of text and of random symbols
    take turns.

    `positions` has every position of the window in the order in which they are disturbed, the first `required` of them
    always; those from `counted_from` on count in the score of every window. The scorer is given `pass_rows` rows at
    a time, which divide R, so that an answer about a row is always compared with an earlier one from a pass of the same
    shape.
    """

    x: np.ndarray
    other: np.ndarray
    targets: np.ndarray
    positions: tuple[int, ...]
    required: int
    counted_from: int
    pass_rows: int

    def disturbances(self) -> Iterator[np.ndarray]:
        """One position for each row, [R] each, until every position has met a row."""
        rows = len(self.x)
        for first in range(0, len(self.positions), rows):
            yield np.resize(np.array(self.positions[first : first + rows]), rows)

    def disturbed(self, times: np.ndarray) -> np.ndarray:
        """x with everything replaced from positions `times` [R] on: [R, T]."""
        rows = np.arange(len(self.x))
        x = np.where(np.arange(self.x.shape[1]) < times[:, None], self.x, self.other)
        x[rows, times] = self.targets[rows, times]
        return x


def make_probe(spec: Spec, text: np.ndarray, seed: int, rows: int = MIN_ROWS) -> Probe:
    """A probe of windows of seq_len symbols, from `text` [n] int32 and from a random generator.

    Passes have `rows` rows, fewer where the log-probabilities of so many would not fit into LOG_PROBS_BYTES.
    """
    assert rows > 0 and len(text) > 0
    rng = np.random.default_rng(seed)
    seq_len, vocab_size = spec.model.seq_len, spec.vocabulary.size
    pass_rows = max(1, min(rows, LOG_PROBS_BYTES // (4 * seq_len * vocab_size)))
    pairs = next(pairs for pairs in range(MIN_ROWS // 2, MIN_ROWS * pass_rows) if 2 * pairs % pass_rows == 0)
    padded = np.resize(text, max(len(text), seq_len))
    starts = rng.integers(0, len(padded) - seq_len + 1, pairs)
    real = np.stack([padded[start : start + seq_len] for start in starts])
    noise = rng.integers(0, vocab_size, real.shape)
    x = np.stack([real, noise], axis=1).reshape(2 * pairs, seq_len).astype(np.int32)
    other = ((x + rng.integers(1, vocab_size, x.shape)) % vocab_size).astype(np.int32)
    targets = other.copy()
    if (start := spec.vocabulary.document_start) is not None:
        # Every other row is disturbed by document starts: what depends on one, like a mask, must not be early.
        targets[1::2] = np.where(x[1::2] != start, start, other[1::2])
    required = required_positions(seq_len, spec.model.patch_size)
    # Before a window's own symbols are those that it reads for their context and only the first window counts.
    counted_from = seq_len - spec.evaluation.stride_symbols
    rest = [t for t in rng.permutation(seq_len).tolist() if t not in required]
    positions = (*required, *sorted(rest, key=lambda t: t < counted_from))
    return Probe(x, other, targets, positions, len(required), counted_from, pass_rows)


def required_positions(seq_len: int, patch_size: int) -> tuple[int, ...]:
    """The positions of a window that are disturbed before all others, because mistakes are likely there.

    Both ends of the window, one position at every offset in a patch, and every power of two, in symbols and in patches,
    with its neighbours: there the chunks of scans and the tiles of attention meet. A leak at every k-th position shows
    at one of them if k is such a number.
    """
    # Offset by offset further into the window.
    patches = [offset * (seq_len // patch_size) // patch_size for offset in range(patch_size)]
    offsets = [patch * patch_size + offset for offset, patch in enumerate(patches)]
    ends = [0, seq_len - 1, seq_len - patch_size, *offsets]
    powers = sorted({unit << shift for unit in (1, patch_size) for shift in range(seq_len.bit_length())})
    beside = [power + step for power in powers for step in (0, -1, 1)]
    return tuple(dict.fromkeys(t for t in [*ends, *beside] if 0 <= t < seq_len))


def in_passes(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, rows: int) -> np.ndarray:
    """`function` of x [R, T], at most `rows` rows at a time."""
    return np.concatenate([function(x[first : first + rows]) for first in range(0, len(x), rows)])
