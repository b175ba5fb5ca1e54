"""How far a score may be from the score of much more text of the same kind.

Documents are independent, the symbols of one document are not, so the documents are the sample
(FEATURES 3.13 asks for Student's t). The score is a ratio of two sums over them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from shared.errors import UserError

# From this many degrees of freedom on, the expansion of the quantile around the normal one is exact to 1e-9.
_EXPANSION_FROM = 500


@dataclass(frozen=True)
class Confidence:
    """An interval for bits per byte at a confidence level. Without at least two units there is none,
    and both ends are None."""

    level: float
    low_bpb: float | None
    high_bpb: float | None
    units: Literal["documents", "windows"]
    num_units: int


def ratio_interval(
    unit_nats: np.ndarray, unit_bytes: np.ndarray, level: float, units: Literal["documents", "windows"]
) -> Confidence:
    """Interval of sum(nats) / sum(bytes) over independent units, in bits per byte.

    Both arrays are [U]. With R the ratio, the linearised variance is U/(U-1) sum (y - R x)^2 / (sum x)^2;
    the interval is R +- t sqrt(variance), with t of U - 1 degrees of freedom.
    """
    if not 0.0 < level < 1.0:
        raise UserError(f"confidence {level}: must lie between 0 and 1")
    bits = np.asarray(unit_nats, np.float64) / math.log(2.0)
    size = np.asarray(unit_bytes, np.float64)
    count = len(bits)
    if count < 2:
        return Confidence(level, None, None, units, count)
    ratio = bits.sum() / size.sum()
    variance = count / (count - 1) * np.sum((bits - ratio * size) ** 2) / size.sum() ** 2
    half = student_quantile(0.5 + level / 2.0, count - 1) * math.sqrt(variance)
    return Confidence(level, float(ratio - half), float(ratio + half), units, count)


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t with an integer number of degrees of freedom, to 1e-9 relative."""
    assert 0.0 < probability < 1.0 and degrees >= 1
    if probability < 0.5:
        return -student_quantile(1.0 - probability, degrees)
    if degrees > _EXPANSION_FROM:
        return _expanded_quantile(probability, degrees)
    low, high = 0.0, math.pi / 2.0
    for _ in range(80):
        middle = (low + high) / 2.0
        if _central_probability(middle, degrees) < 2.0 * probability - 1.0:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2.0)


def student_tail(statistic: float, degrees: int) -> float:
    """P(t > statistic) of Student's t with an integer number of degrees of freedom."""
    assert degrees >= 1 and not math.isnan(statistic)
    central = _central_probability(math.atan(abs(statistic) / math.sqrt(degrees)), degrees)
    return (1.0 - central) / 2.0 if statistic >= 0.0 else (1.0 + central) / 2.0


def _central_probability(angle: float, degrees: int) -> float:
    """P(|t| < sqrt(degrees) tan(angle)): the finite sum for integer degrees (Abramowitz and Stegun 26.7.3-4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total


def _expanded_quantile(probability: float, degrees: int) -> float:
    """The quantile for many degrees of freedom, in powers of 1/degrees (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
