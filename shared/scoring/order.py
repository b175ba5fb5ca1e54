"""Checks that a score does not depend on the order of windows, other rows of their batch, or earlier scores."""

from __future__ import annotations

import numpy as np

from data.stream import SymbolStream
from shared import tolerances
from shared.engine.protocol import Scorer
from shared.scoring.bits_per_byte import Score, read_windows
from shared.scoring.checks import Check
from shared.scoring.probe import Probe, in_passes


def check_order(scorer: Scorer, probe: Probe) -> Check:
    """Score the windows of a probe twice, last row first the second time: the nats stay the same."""
    before = in_passes(scorer.score, probe.x, probe.pass_rows)
    return _scored_again(scorer, probe.x, before, np.ones(before.shape, bool), probe.pass_rows)


def check_order_of_score(scorer: Scorer, score: Score, stream: SymbolStream) -> Check:
    """Score windows from all over a text again, batched with other windows than before and after all the text scored
    since: the nats stay the same."""
    kept, rows = score.evidence.kept, score.evidence.pass_rows
    x = read_windows(stream, [window for window, _ in kept], -(-len(kept) // rows) * rows, score.seq_len)
    before, counted = np.zeros(x.shape), np.zeros(x.shape, bool)
    for row, (window, nats) in enumerate(kept):
        span = slice(window.count_start - window.start, window.count_stop - window.start)
        before[row, span], counted[row, span] = nats, True
    return _scored_again(scorer, x, before, counted, rows)


def _scored_again(scorer: Scorer, x: np.ndarray, before: np.ndarray, counted: np.ndarray, rows: int) -> Check:
    """Compare nats [n, T] with those of the windows x [n, T] in passes of `rows`, last row first, where `counted`.

    No score may change; in bfloat16 no window's mean, because a GPU may sum in another order for another row.
    """
    again = in_passes(scorer.score, x[::-1], rows)[::-1]
    change = np.where(counted, again - before, 0.0)
    most = float(np.abs(change).max())
    how_many = np.count_nonzero(counted.any(axis=1))
    detail = f"{how_many} windows scored again in another order: scores moved by {most:.1e} nats"
    if scorer.spec.training.dtype == "bfloat16":
        means, limit = change.sum(axis=1) / np.maximum(counted.sum(axis=1), 1), tolerances.ORDER_BF16_ABS
        mean = float(np.abs(means).max())
        return Check("order", mean <= limit, mean, limit, f"{detail}, the mean of a window by {mean:.1e}")
    return Check("order", most <= tolerances.CAUSALITY_ABS, most, tolerances.CAUSALITY_ABS, detail)
