"""Is a score honest? Each check looks at one way in which published scores were not (FEATURES 1.3, 1.4).

They call the final scoring function, `Scorer.score` and `Scorer.log_probs`, and know nothing about the
model behind it, so whatever is added between the model and the score is checked as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shared import tolerances
from shared.engine import Scorer
from shared.scoring.bits_per_byte import Score
from shared.scoring.windows import times_counted
from shared.spec import Spec

# A model of fewer parameters than this that scores below the limit is stopped (FEATURES 1.3, test 8).
PLAUSIBLE_PARAMETERS = 20_000_000
PLAUSIBLE_BPB = 1.0


@dataclass(frozen=True)
class Check:
    """The outcome of one check: what was measured, the limit it was held to, and a sentence about it.

    `warning` marks a measurement that passes but should not have been that large.
    """

    name: str
    passed: bool
    measured: float
    limit: float
    detail: str
    warning: bool = False


@dataclass(frozen=True)
class Probe:
    """Sequences for the checks: `x` [R, T] and `other` [R, T], int32, equal nowhere; rows of text and of
    random symbols take turns. `positions` are the places t to disturb."""

    x: np.ndarray
    other: np.ndarray
    positions: tuple[int, ...]

    def disturbances(self) -> list[np.ndarray]:
        """Positions t for every row, [R] each, until every position has met a row."""
        rows = len(self.x)
        groups = [self.positions[first : first + rows] for first in range(0, len(self.positions), rows)]
        return [np.resize(np.array(group), rows) for group in groups]


def make_probe(spec: Spec, text: np.ndarray, seed: int, rows: int = 4, random_positions: int = 4) -> Probe:
    """A probe of `rows` sequences of seq_len symbols from `text` [n] int32 and from a random generator.

    Positions: the first and last places, both ends of a patch boundary, one place at every offset in a
    patch, and some at random.
    """
    assert rows % 2 == 0 and len(text) > 0
    rng = np.random.default_rng(seed)
    seq_len, patch_size, vocab_size = spec.model.seq_len, spec.model.patch_size, spec.vocabulary.size
    padded = np.resize(text, max(len(text), seq_len))
    starts = rng.integers(0, len(padded) - seq_len + 1, rows // 2)
    real = np.stack([padded[start : start + seq_len] for start in starts])
    noise = rng.integers(0, vocab_size, real.shape)
    x = np.stack([real, noise], axis=1).reshape(rows, seq_len).astype(np.int32)
    other = ((x + rng.integers(1, vocab_size, x.shape)) % vocab_size).astype(np.int32)
    offsets = [int(rng.integers(spec.model.num_patches)) * patch_size + offset for offset in range(patch_size)]
    edges = [0, 1, patch_size - 1, patch_size, patch_size + 1, seq_len - patch_size, seq_len - 1]
    chosen = {*edges, *offsets, *rng.integers(0, seq_len, random_positions).tolist()}
    positions = tuple(sorted(t for t in chosen if 0 <= t < seq_len))
    if (start := spec.vocabulary.document_start) is not None:
        # Every other row is disturbed by document starts: what hangs on one alone, as a mask, must not be early either.
        for row in range(1, rows, 2):
            other[row, [t for t in positions if x[row, t] != start]] = start
    return Probe(x, other, positions)


def check_future(scorer: Scorer, probe: Probe) -> Check:
    """Replace x[t:] and the other rows' future: no nats before t may change (FEATURES 1.3, test 1)."""
    before = scorer.score(probe.x)
    worst, where = 0.0, ""
    for times in probe.disturbances():
        future = np.arange(probe.x.shape[1]) >= times[:, None]
        change = np.abs(scorer.score(np.where(future, probe.other, probe.x)) - before)
        worst, where = _worse(worst, where, np.where(future, 0.0, change), times)
    alone = np.concatenate([probe.x[:1], probe.other[1:]])
    change = np.abs(scorer.score(alone)[:1] - before[:1])
    if _exceeds(float(change.max()), worst):
        worst, where = float(change.max()), "when only other rows of the batch changed"
    detail = f"largest change of an earlier score {worst:.1e} nats{f', {where}' if where else ''}"
    return Check("future", worst <= tolerances.CAUSALITY_ABS, worst, tolerances.CAUSALITY_ABS, detail)


def check_target(scorer: Scorer, probe: Probe) -> Check:
    """Replace only x[t]: the whole distribution at t stays, and the score at t is the one it gives to the
    new symbol (FEATURES 1.3, test 2)."""
    before = scorer.log_probs(probe.x)
    rows = np.arange(len(probe.x))
    moved, where, misread = 0.0, "", 0.0
    for times in probe.disturbances():
        x = probe.x.copy()
        x[rows, times] = probe.other[rows, times]
        believed = before[rows, times]
        change = np.zeros(x.shape)
        change[rows, times] = np.abs(scorer.log_probs(x)[rows, times] - believed).max(axis=-1)
        moved, where = _worse(moved, where, change, times)
        disagreement = np.abs(scorer.score(x)[rows, times] + believed[rows, x[rows, times]]).max()
        misread = float(disagreement) if _exceeds(float(disagreement), misread) else misread
    detail = f"distribution moved by {moved:.1e}, score off it by {misread:.1e} nats{f', {where}' if where else ''}"
    if not misread <= tolerances.SCORE_AGREEMENT_ABS:
        return Check("target", False, misread, tolerances.SCORE_AGREEMENT_ABS, detail)
    return Check("target", moved <= tolerances.CAUSALITY_ABS, moved, tolerances.CAUSALITY_ABS, detail)


def check_normalisation(scorer: Scorer, probe: Probe) -> Check:
    """Probabilities sum to one everywhere, and `score` is what they say (FEATURES 1.3, test 3)."""
    log_probs = scorer.log_probs(probe.x).astype(np.float64)
    sums = np.exp(log_probs).sum(axis=-1)
    off = float(np.abs(sums - 1.0).max())
    scored = -np.take_along_axis(log_probs, probe.x[..., None].astype(np.int64), axis=-1)[..., 0]
    disagreement = float(np.abs(scored - scorer.score(probe.x)).max())
    worst = disagreement if _exceeds(disagreement, off) else off
    detail = f"sum of probabilities off 1 by {off:.1e}; score and distribution differ by {disagreement:.1e} nats"
    return Check("normalisation", worst <= tolerances.NORMALISATION_ABS, worst, tolerances.NORMALISATION_ABS, detail)


def check_coverage(score: Score, num_symbols: int) -> Check:
    """Every symbol of the stream was counted exactly once (FEATURES 1.3, test 9)."""
    times = times_counted(score.windows, num_symbols)
    missed, repeated = int(np.sum(times == 0)), int(np.sum(times > 1))
    wrong = missed + repeated + abs(score.symbols - int(times.sum()))
    detail = f"{score.symbols} symbols counted of {num_symbols}; {missed} never, {repeated} more than once"
    return Check("coverage", wrong == 0, float(wrong), 0.0, detail)


def check_denominator(score: Score) -> Check:
    """Bytes counted symbol by symbol against the bytes of the text itself (FEATURES 1.2, 1.3 test 5)."""
    off = abs(score.bytes / score.text_bytes - 1.0) if score.text_bytes else math.inf
    detail = f"{score.bytes} bytes counted by symbol, {score.text_bytes} in the text"
    limit = tolerances.DENOMINATOR_REL
    return Check("denominator", off <= limit, off, limit, detail, off > tolerances.DENOMINATOR_WARN_REL)


def check_plausibility(score: Score, num_parameters: int) -> Check:
    """A small model below one bit per byte is a leak until shown otherwise (FEATURES 1.3, test 8)."""
    small = num_parameters < PLAUSIBLE_PARAMETERS
    passed = math.isfinite(score.bpb) and not (small and score.bpb < PLAUSIBLE_BPB)
    detail = f"{num_parameters} parameters; below {PLAUSIBLE_PARAMETERS} no score under the limit is believed"
    return Check("plausibility", passed, score.bpb, PLAUSIBLE_BPB if small else 0.0, detail)


def _worse(worst: float, where: str, change: np.ndarray, times: np.ndarray) -> tuple[float, str]:
    """The larger of the worst so far and the largest of change [R, T], with a note on where it is."""
    row, place = np.unravel_index(int(np.argmax(change)), change.shape)
    value = float(change[row, place])
    if not _exceeds(value, worst):
        return worst, where
    return value, f"at symbol {place} when symbol {times[row]} changed"


def _exceeds(value: float, worst: float) -> bool:
    """value > worst, where a value that is not a number is worse than anything."""
    return value > worst or (math.isnan(value) and not math.isnan(worst))
