"""Checks that no position of the window, or of the patch, is predicted far better than those like it.

A leak at one position, or at every 64th, shows in the mean nats of that position over all windows, which scoring adds
up in passing. This sees actual scores, where `shared.scoring.leaks` sees possible ones: it costs no forward pass and
covers every position that counts, but needs many windows.
"""

from __future__ import annotations

import numpy as np

from data.stream import SymbolStream
from shared.scoring.bits_per_byte import Score, read_windows
from shared.scoring.checks import Check
from shared.scoring.windows import PositionSums

# The mean of fewer windows is not believed.
MIN_WINDOWS = 24
# The peers of a position are those at the same offset in so many of the nearest patches, and half as many at least.
PEERS = 16
# How far below the median of its peers a mean may lie, in units of the usual distance.
MOST_BELOW = 7.0
# The usual distance is taken to be at least this share of the nats.
LEAST_SPREAD_FRAC = 0.01
# The nats at an offset in the patch may be this share of those at both neighbouring offsets, and no less.
LEAST_SHARE = 0.3
# Below this share of the entropy of symbols elsewhere, the text itself explains the low nats.
LESS_VARIED_FRAC = 0.5
# Windows and positions that are read to find that out.
ENTROPY_WINDOWS, ENTROPY_POSITIONS = 1024, 32
# A normal distribution's standard deviation over its median absolute deviation.
DEVIATION_OVER_MEDIAN = 1.4826


def check_positions(score: Score, patch_size: int, stream: SymbolStream) -> Check:
    """No position of the window has far fewer nats than the same one of the patches around it, and no offset in the
    patch far fewer than both neighbours, unless the text itself varies less there."""
    sums = score.evidence.positions
    below = distances_below(sums, patch_size)
    offset, share = lowest_offset(sums, patch_size)
    suspects = np.flatnonzero(below > MOST_BELOW)
    compared = int(np.count_nonzero(~np.isnan(below)))
    if share < LEAST_SHARE or len(suspects):
        x = _some_windows(score, stream)
        offsets = np.arange(score.seq_len) % patch_size
        beside = np.isin(offsets, [(offset - 1) % patch_size, (offset + 1) % patch_size])
        if share < LEAST_SHARE and _varies(x, np.flatnonzero(offsets == offset), np.flatnonzero(beside)):
            detail = f"offset {offset} of the patch has {share:.2f} times the nats of its neighbours"
            return Check("positions", False, share, LEAST_SHARE, detail)
        explained = [t for t in suspects.tolist() if not _varies(x, np.array([t]), peers(t, sums, patch_size))]
        below[explained] = np.nan
    if np.isnan(below).all():
        detail = f"not compared: needs {MIN_WINDOWS} windows and {PEERS // 2 + 1} patches with symbols that count"
        return Check("positions", True, 0.0, MOST_BELOW, detail)
    worst = int(np.nanargmax(below))
    detail = (
        f"{compared} of {score.seq_len} positions compared with those around them; the mean nats of position {worst} "
        f"lie {below[worst]:.1f} usual distances below"
    )
    return Check("positions", bool(below[worst] <= MOST_BELOW), float(below[worst]), MOST_BELOW, detail)


def distances_below(sums: PositionSums, patch_size: int) -> np.ndarray:
    """The distance of each position's mean nats below the median of its peers, in units of the usual one: [T], not a
    number where there are too few windows or peers.

    Usual is the larger of the spread of such distances over all positions (by their median, which a few leaks do not
    move) and the standard error of one mean, taken from the peers, because a leak has no spread of its own.
    """
    mean, variance = _moments(sums)
    expected, error = np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    for t in np.flatnonzero(~np.isnan(mean)).tolist():
        others = peers(t, sums, patch_size)
        if len(others) >= PEERS // 2:
            expected[t] = np.median(mean[others])
            error[t] = np.sqrt(np.median(variance[others]) / sums.counts[t])
    below = expected - mean
    if np.isnan(below).all():
        return below
    spread = DEVIATION_OVER_MEDIAN * np.nanmedian(np.abs(below - np.nanmedian(below)))
    usual = np.maximum(np.maximum(spread, error), LEAST_SPREAD_FRAC * expected)
    return below / np.maximum(usual, np.finfo(float).tiny)


def peers(t: int, sums: PositionSums, patch_size: int) -> np.ndarray:
    """The positions that position t is compared with: at its offset in the patches nearest to its own."""
    same = np.arange(t % patch_size, len(sums.counts), patch_size)
    same = same[(sums.counts[same] >= MIN_WINDOWS) & (same != t)]
    return same[np.argsort(np.abs(same - t), kind="stable")[:PEERS]]


def lowest_offset(sums: PositionSums, patch_size: int) -> tuple[int, float]:
    """(the offset in the patch whose mean nats are the smallest share of those at both neighbours, that share).

    Infinite where there are no two offsets, or too few symbols.
    """
    usable = len(sums.counts) // patch_size * patch_size
    counts, nats = (values[:usable].reshape(-1, patch_size).sum(axis=0) for values in (sums.counts, sums.nats))
    if patch_size == 1 or counts.min() < MIN_WINDOWS:
        return 0, np.inf
    mean = nats / counts
    shares = mean / np.maximum(np.minimum(np.roll(mean, 1), np.roll(mean, -1)), np.finfo(float).tiny)
    return int(np.argmin(shares)), float(shares.min())


def _moments(sums: PositionSums) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the nats at each position, [T] each; not a number with fewer than MIN_WINDOWS windows."""
    counts = np.where(sums.counts >= MIN_WINDOWS, sums.counts, np.nan)
    mean = sums.nats / counts
    return mean, np.maximum(sums.squares / counts - mean * mean, 0.0)


def _some_windows(score: Score, stream: SymbolStream) -> np.ndarray:
    """Symbols [n, T] of windows from all over the text."""
    chosen = np.linspace(0, len(score.windows) - 1, min(len(score.windows), ENTROPY_WINDOWS)).round().astype(int)
    return read_windows(stream, [score.windows[index] for index in chosen.tolist()], len(chosen), score.seq_len)


def _varies(x: np.ndarray, positions: np.ndarray, others: np.ndarray) -> bool:
    """Whether the symbols of x [n, T] at some positions vary as much as at others, so that a model cannot know more."""
    own, usual = _entropy(x, positions), _entropy(x, others)
    return own >= LESS_VARIED_FRAC * usual


def _entropy(x: np.ndarray, positions: np.ndarray) -> float:
    """Median over positions of the entropy, in nats, of the symbols that x [n, T] has there."""
    chosen = positions[np.linspace(0, len(positions) - 1, min(len(positions), ENTROPY_POSITIONS)).round().astype(int)]
    shares = [np.unique(x[:, t], return_counts=True)[1] / len(x) for t in chosen]
    return float(np.median([-np.sum(share * np.log(share)) for share in shares]))
