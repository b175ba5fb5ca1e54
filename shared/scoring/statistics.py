"""Means, paired differences and their intervals (docs/techniques.md 1.6): Student's t, deviations with ddof = 1.

Two things make a measured difference uncertain, and each has an interval of its own. Over seeds: would training
again give the same? Over documents: would other text of the same kind give the same?
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shared.scoring.confidence import Confidence, check_level, ratio_interval, student_quantile, student_tail
from shared.scoring.documents import DocumentScores

# Below this many seeds no verdict is given: with two, Student's t at 99 % is 64 standard errors.
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Interval:
    """Ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """`mean` and standard deviation `std` of `n` values; `interval` is that of the mean. One value has
    neither deviation nor interval."""

    n: int
    mean: float
    std: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Difference:
    """New minus old over seeds. `paired`: over the `n` seeds that both have; `welch`: over all seeds of both, of
    which `n` is the smaller number; `none`: too few values for any. `std` is that of the paired differences,
    `probability` the one-sided p value of "new is below old by more than the margin"."""

    method: Literal["paired", "welch", "none"]
    n: int
    mean: float
    std: float | None = None
    degrees: int | None = None
    interval: Interval | None = None
    probability: float | None = None


def summarise(values: Sequence[float], level: float) -> Summary:
    """Mean, deviation, and the interval mean +- t sd / sqrt(n) with t of n - 1 degrees of freedom."""
    check_level(level)
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Summary(n, mean, None, None)
    std = statistics.stdev(values)
    return Summary(n, mean, std, _around(mean, std / math.sqrt(n), n - 1, level))


def difference(new: Mapping[int, float], old: Mapping[int, float], level: float, margin: float = 0.0) -> Difference:
    """New minus old, both by seed: paired over the seeds they share, or after Welch where they share fewer than two, or
    too few for a verdict that all of them are enough for.

    The same seed means the same batches and, where shapes agree, the same initial weights, so pairing removes what
    a seed does to both. `margin` is that of the one-sided test, in the unit of the values.
    """
    check_level(level)
    shared = sorted(new.keys() & old.keys())
    if len(shared) == 1 and min(len(new), len(old)) < 2:
        return Difference("none", 1, new[shared[0]] - old[shared[0]])
    fewest = FEWEST_SEEDS if min(len(new), len(old)) >= FEWEST_SEEDS else 2
    method: Literal["paired", "welch"] = "paired" if len(shared) >= fewest else "welch"
    std = None
    if method == "paired":
        values, n = [new[seed] - old[seed] for seed in shared], len(shared)
        mean, std = statistics.fmean(values), statistics.stdev(values)
        error, degrees = std / math.sqrt(n), n - 1
    else:
        mean, n = statistics.fmean(new.values()) - statistics.fmean(old.values()), min(len(new), len(old))
        if n < 2:
            return Difference("none", n, mean)
        error, degrees = _welch(list(new.values()), list(old.values()))
    interval = _around(mean, error, degrees, level)
    return Difference(method, n, mean, std, degrees, interval, _below(mean + margin, error, degrees))


def document_interval(new: Sequence[DocumentScores], old: Sequence[DocumentScores], level: float) -> Confidence | None:
    """Interval of new minus old in bits per byte, with the documents of one text as the sample.

    The nats of each document are averaged over the runs of each side (one run for each seed), then their
    differences go where `ratio_interval` has the nats. None for a side without runs.
    """
    check_level(level)
    if not new or not old:
        return None
    sizes = new[0].bytes
    assert all(np.array_equal(side.bytes, sizes) for side in (*new, *old)), "scores of different text"
    nats = np.mean([side.nats for side in new], axis=0) - np.mean([side.nats for side in old], axis=0)
    return ratio_interval(nats, sizes, level)


def _below(mean: float, error: float, degrees: int) -> float:
    """One-sided p value of "the true mean is below 0"."""
    if error == 0.0:
        return 0.0 if mean < 0.0 else 1.0
    return student_tail(-mean / error, degrees)


def _around(mean: float, error: float, degrees: int, level: float) -> Interval:
    half = student_quantile(0.5 + level / 2.0, degrees) * error
    return Interval(mean - half, mean + half)


def _welch(new: Sequence[float], old: Sequence[float]) -> tuple[float, int]:
    """Standard error of the difference of two means, and Welch's degrees of freedom, rounded down: that
    widens the interval a little and keeps the quantile exact."""
    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in (new, old)]
    total = sum(part for part, _ in parts)
    if total == 0.0:
        return 0.0, min(degrees for _, degrees in parts)
    degrees = total**2 / sum(part**2 / degrees for part, degrees in parts)
    # A rounding error must not cost a whole degree.
    return math.sqrt(total), max(1, math.floor(degrees + 1e-9))
