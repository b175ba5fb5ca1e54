"""Checks that a score does not depend on later symbols or on the symbol itself, and that probabilities sum to one.

These checks call the final scoring function, `Scorer.score` and `Scorer.log_probs`, and know nothing about the model
behind it, so whatever is added between the model and the score is checked as well.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from shared import tolerances
from shared.engine.protocol import Scorer
from shared.scoring.checks import Check
from shared.scoring.probe import Probe, in_passes

# Log-probabilities that are turned into probabilities at a time.
_CHUNK_VALUES = 1 << 22


def check_leaks(scorer: Scorer, probe: Probe, seconds: float = 0.0) -> list[Check]:
    """The checks `future`, `target` and `normalisation` (docs/techniques.md 1.4).

    Row by row everything from a position t on is replaced. No nats before t may change, and those at t must be what the
    distribution at t gave to the new symbol before: a distribution that depends on its own symbol, in whatever way
    helps, gives it another probability. Where t is one of the first R positions the whole distribution is compared.

    The positions that the probe requires are always disturbed; the others, in its order, for as long as `seconds` last.
    """
    before = in_passes(scorer.score, probe.x, probe.pass_rows)
    first = next(probe.disturbances())
    believed = _read_distributions(scorer, probe, first)
    moved = np.abs(_distributions_at(scorer, probe, first) - believed.whole).max(axis=-1)

    future, target, distribution = _Worst(), _Worst(), _Worst()
    distribution.see(first, moved, first)
    rows, position = np.arange(len(before)), np.arange(before.shape[1])
    done: set[int] = set()
    begin = time.perf_counter()
    for times in probe.disturbances():
        if len(done) >= probe.required and time.perf_counter() - begin >= seconds:
            break
        after = in_passes(scorer.score, probe.disturbed(times), probe.pass_rows)
        change = np.where(position < times[:, None], np.abs(after - before), 0.0)
        latest = change.argmax(axis=1)
        future.see(latest, change[rows, latest], times)
        target.see(times, np.abs(after[rows, times] + believed.of_targets[rows, times]), times)
        done.update(times.tolist())
    how_many = _how_many(done, probe, seconds)
    return [
        future.judged("future", f"largest change of an earlier score {future}; {how_many}", tolerances.CAUSALITY_ABS),
        _target_check(distribution, target, how_many),
        _normalisation_check(believed, before),
    ]


class _Worst:
    """The largest change seen so far, and where; one that is not a number is larger than all others."""

    def __init__(self) -> None:
        self.nats, self.where = 0.0, ""

    def see(self, positions: np.ndarray, changes: np.ndarray, times: np.ndarray) -> None:
        """Take in the changes [R] at positions [R] of rows that were disturbed from `times` [R] on."""
        row = int(np.argmax(changes))
        value = float(changes[row])
        if value > self.nats or (math.isnan(value) and not math.isnan(self.nats)):
            self.nats, self.where = value, f" at symbol {positions[row]} when symbol {times[row]} changed"

    def judged(self, name: str, detail: str, limit: float) -> Check:
        return Check(name, self.nats <= limit, self.nats, limit, detail)

    def __str__(self) -> str:
        return f"{self.nats:.1e} nats{self.where}"


@dataclass(frozen=True)
class _Believed:
    """Log-probabilities from the distributions at undisturbed positions: `of_symbols` [R, T] of x itself,
    `of_targets` [R, T] of what it will be replaced by, and `whole` [R, V] at one position of every row.
    `off` is the largest distance of a sum of probabilities from 1."""

    of_symbols: np.ndarray
    of_targets: np.ndarray
    whole: np.ndarray
    off: float


def _read_distributions(scorer: Scorer, probe: Probe, times: np.ndarray) -> _Believed:
    """The distributions of a probe's rows; only those of one pass are in memory."""
    passes = [slice(first, first + probe.pass_rows) for first in range(0, len(probe.x), probe.pass_rows)]
    parts = [_read_pass(scorer.log_probs(probe.x[rows]), probe, rows, times[rows]) for rows in passes]
    of_symbols, of_targets, whole, off = zip(*parts, strict=True)
    return _Believed(np.concatenate(of_symbols), np.concatenate(of_targets), np.concatenate(whole), float(np.max(off)))


def _read_pass(
    log_probs: np.ndarray, probe: Probe, rows: slice, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The fields of _Believed from the log-probabilities [B, T, V] of some rows."""
    of_symbols, of_targets = (
        np.take_along_axis(log_probs, symbols[rows, :, None].astype(np.int64), axis=-1)[..., 0]
        for symbols in (probe.x, probe.targets)
    )
    return of_symbols, of_targets, _at(log_probs, times), _furthest_from_one(log_probs)


def _at(log_probs: np.ndarray, times: np.ndarray) -> np.ndarray:
    """A copy of one distribution of each row, [B, V] of [B, T, V]."""
    return log_probs[np.arange(len(log_probs)), times]


def _distributions_at(scorer: Scorer, probe: Probe, times: np.ndarray) -> np.ndarray:
    """Log-probabilities [R, V] at positions `times` [R] of rows that are disturbed there."""
    x = probe.disturbed(times)
    passes = [slice(first, first + probe.pass_rows) for first in range(0, len(x), probe.pass_rows)]
    return np.concatenate([_at(scorer.log_probs(x[rows]), times[rows]) for rows in passes])


def _furthest_from_one(log_probs: np.ndarray) -> float:
    """The largest |sum of probabilities - 1| over log-probabilities [B, T, V]; not a number if one is none.

    Summed in float64 chunk by chunk: for a large vocabulary a copy would take gigabytes.
    """
    batch, _, vocab_size = log_probs.shape
    step = max(1, _CHUNK_VALUES // (batch * vocab_size))
    chunks = (log_probs[:, start : start + step] for start in range(0, log_probs.shape[1], step))
    return float(np.max([np.abs(np.exp(chunk).sum(axis=-1, dtype=np.float64) - 1.0).max() for chunk in chunks]))


def _how_many(done: set[int], probe: Probe, seconds: float) -> str:
    """The number of the window's positions that were disturbed, and why not all."""
    seq_len, counted = len(probe.positions), len(probe.positions) - probe.counted_from
    if len(done) == seq_len:
        return f"all {seq_len} positions of a window disturbed"
    why = f"as many as {seconds:g} s allow" if seconds > 0 else "those where mistakes are likely"
    if done.issuperset(range(probe.counted_from, seq_len)):
        why += f", all {counted} that count in every window among them"
    return f"{len(done)} of {seq_len} positions of a window disturbed, {why}"


def _target_check(distribution: _Worst, target: _Worst, how_many: str) -> Check:
    detail = f"distribution moved by {distribution}, score off it by {target}; {how_many}"
    if not target.nats <= tolerances.SCORE_AGREEMENT_ABS:
        return target.judged("target", detail, tolerances.SCORE_AGREEMENT_ABS)
    return distribution.judged("target", detail, tolerances.CAUSALITY_ABS)


def _normalisation_check(believed: _Believed, before: np.ndarray) -> Check:
    """Probabilities sum to one everywhere, and `score` is what they say."""
    disagreement = float(np.abs(before + believed.of_symbols).max())
    worst, limit = float(np.max([believed.off, disagreement])), tolerances.NORMALISATION_ABS
    detail = f"sum of probabilities off 1 by {believed.off:.1e}; score off the distribution by {disagreement:.1e} nats"
    return Check("normalisation", worst <= limit, worst, limit, detail)
