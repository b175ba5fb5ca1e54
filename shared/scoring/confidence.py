"""Confidence intervals: how far a score may be from the score on much more text of the same kind.

Documents are independent, the symbols of one document are not, so the documents are the sample
(docs/techniques.md 1.6). The score is a ratio of two sums over them. Measured, that holds for scores with adaptation
too (records/2026-11-26-adaptation.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np

from shared.errors import UserError

# Documents of unequal length count as fewer of equal length. With fewer than this the long ones decide the score, and
# the spread of the others says nothing about it.
MIN_EFFECTIVE_DOCUMENTS = 5.0
# From this many degrees of freedom on, the expansion of the quantile around the normal one is exact to 1e-9.
_EXPANSION_FROM = 500
# Terms of a continued fraction; fewer than 60 are needed below _EXPANSION_FROM, and their number grows with its root.
_MOST_TERMS = 100_000


@dataclass(frozen=True)
class Confidence:
    """An interval for bits per byte at a confidence level, from `num_units` documents that count as `effective_units`
    of equal length. Where these are too few there is none: both ends are None and `reason` says why."""

    level: float
    low_bpb: float | None
    high_bpb: float | None
    num_units: int
    effective_units: float
    reason: str | None = None
    units: Literal["documents"] = "documents"


def ratio_interval(document_nats: np.ndarray, document_bytes: np.ndarray, level: float) -> Confidence:
    """Return the interval of sum(nats) / sum(bytes) over independent documents, in bits per byte.

    Both arrays are [D], float64 nats and bytes. With R the ratio and w = x / sum(x) the share of a document in the
    bytes x, the variance is sum ((y - R x) / (1 - w))^2 / (sum x)^2: each residual is from the ratio of the other
    documents, because a long document pulls R to itself (HC3: MacKinnon and White, J. Econometrics 29, 1985). The
    interval is R +- t sqrt(variance) with t of n_eff - 1 degrees of freedom, n_eff = (sum x)^2 / sum x^2 (Kish, Survey
    Sampling, 1965). Below MIN_EFFECTIVE_DOCUMENTS there is none. Raises UserError for an impossible level.
    """
    check_level(level)
    bits = np.asarray(document_nats, np.float64) / math.log(2.0)
    size = np.asarray(document_bytes, np.float64)
    effective = effective_number(size)
    if effective < MIN_EFFECTIVE_DOCUMENTS:
        return Confidence(level, None, None, len(size), effective, _too_few(size, effective))
    ratio, share = bits.sum() / size.sum(), size / size.sum()
    left_out = (bits - ratio * size) / (1.0 - share)
    error = float(np.sqrt(np.sum(left_out**2))) / float(size.sum())
    half = student_quantile(0.5 + level / 2.0, effective - 1.0) * error
    return Confidence(level, float(ratio - half), float(ratio + half), len(size), effective)


def effective_number(sizes: np.ndarray) -> float:
    """Return (sum x)^2 / sum x^2 of sizes [D]: as many as there are where all are equal, 1 where one has everything."""
    largest = float(np.max(sizes, initial=0.0))
    if largest == 0.0:
        return 0.0
    scaled = np.asarray(sizes, np.float64) / largest
    return float(scaled.sum() ** 2 / np.square(scaled).sum())


def check_level(level: float) -> None:
    """Raise UserError unless it is a confidence level."""
    if not 0.0 < level < 1.0:
        raise UserError(f"confidence {level}: must lie between 0 and 1")


def _too_few(sizes: np.ndarray, effective: float) -> str:
    """The reason why there is no interval, for `no interval: ...`."""
    count, total = len(sizes), float(np.sum(sizes))
    documents = f"{count:,} document{'' if count == 1 else 's'}"
    if count < MIN_EFFECTIVE_DOCUMENTS or total == 0.0:
        return f"{documents}, at least {MIN_EFFECTIVE_DOCUMENTS:.0f} are needed"
    return (
        f"{documents}, the longest with {float(np.max(sizes)) / total:.0%} of the bytes, count as "
        f"{effective:.1f} of equal length; at least {MIN_EFFECTIVE_DOCUMENTS:.0f} are needed"
    )


@lru_cache(maxsize=256)
def student_quantile(probability: float, degrees: float) -> float:
    """Return the quantile of Student's t with `degrees` >= 1 degrees of freedom, to 1e-8 relative."""
    assert 0.0 < probability < 1.0 and degrees >= 1.0
    if probability < 0.5:
        return -student_quantile(1.0 - probability, degrees)
    if degrees > _EXPANSION_FROM:
        return _expanded_quantile(probability, degrees)
    low, high = 0.0, math.pi / 2.0
    for _ in range(80):
        middle = (low + high) / 2.0
        if student_tail(math.sqrt(degrees) * math.tan(middle), degrees) > 1.0 - probability:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2.0)


def student_tail(statistic: float, degrees: float) -> float:
    """Return P(t > statistic) of Student's t with `degrees` >= 1 degrees of freedom.

    It is I(v / 2, 1 / 2; v / (v + t^2)) / 2 for t >= 0 (Abramowitz and Stegun 26.7.1).
    """
    assert degrees >= 1.0 and not math.isnan(statistic)
    square = statistic * statistic
    tail = _incomplete_beta(degrees / 2.0, 0.5, degrees / (degrees + square), square / (degrees + square)) / 2.0
    return tail if statistic >= 0.0 else 1.0 - tail


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b), regularised, with `rest` = 1 - x: the continued fraction DLMF 8.17.22 after the method of Lentz."""
    if x <= 0.0 or rest <= 0.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _incomplete_beta(b, a, rest, x)
    log_front = a * math.log(x) + b * math.log(rest) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    fraction, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(_MOST_TERMS):
        half = term // 2
        if term == 0:
            coefficient = 1.0
        elif term % 2:
            coefficient = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            coefficient = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        denominator = 1.0 / (1.0 + coefficient * denominator)
        numerator = 1.0 + coefficient / numerator
        change = numerator * denominator
        fraction *= change
        if abs(change - 1.0) < 1e-15:
            break
    return math.exp(log_front) * (fraction - 1.0) / a


def _expanded_quantile(probability: float, degrees: float) -> float:
    """The quantile for many degrees of freedom, in powers of 1/degrees (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
