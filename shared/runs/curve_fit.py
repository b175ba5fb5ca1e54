"""Least squares of the scaling curve, and how sure a point of it is (docs/techniques.md 12.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shared.scoring.confidence import check_level, student_quantile

FEWEST_POINTS = 5
# The grid over min(bpb) - c: logarithmic, this wide at first, then refined around the best value.
GRID_POINTS, GRID_ROUNDS, GRID_DECADES = 81, 8, 6.0
# The exponents that an interval considers. 0.01 is a curve that falls as fast from 10^9 to 10^10 as from 10 to 100.
ALPHAS = np.geomspace(0.01, 4.0, 120)
# Fewer runs than this say nothing about what is common to the points of one.
FEWEST_RUNS = 3


@dataclass(frozen=True)
class ScalingCurve:
    """bpb = c + a T^-alpha, T in training symbols."""

    c: float
    a: float
    alpha: float

    def bpb(self, symbols: float) -> float:
        """The score that the curve gives after so many training symbols."""
        return float(self.c + self.a * symbols**-self.alpha)


def fit_curve(symbols: np.ndarray, bpb: np.ndarray) -> ScalingCurve | None:
    """Least squares in bpb: c on a logarithmic grid of min(bpb) - c, refined; for each c the line of ln(bpb - c)
    over ln T, weighted by (bpb - c)^2 so that it too minimises errors in bpb. c is at least 0. None if no c gives
    a falling curve."""
    lowest = float(bpb.min())
    centre, width = -GRID_DECADES / 2.0, GRID_DECADES / 2.0
    least, best = math.inf, None
    for _ in range(GRID_ROUNDS):
        exponents = np.linspace(centre - width, min(0.0, centre + width), GRID_POINTS)
        asymptotes = lowest * (1.0 - 10.0**exponents)
        squares, factors, slopes = _with_asymptotes(symbols, bpb, asymptotes)
        index = int(squares.argmin())
        if squares[index] < least:
            least, centre = float(squares[index]), float(exponents[index])
            best = ScalingCurve(float(asymptotes[index]), float(factors[index]), float(-slopes[index]))
        width = max(2.0 * float(exponents[1] - exponents[0]), 1e-12)
    return best


def project(
    curve: ScalingCurve, symbols: np.ndarray, bpb: np.ndarray, runs: np.ndarray, at: float, level: float
) -> tuple[float, float] | None:
    """The interval in which one more score after `at` symbols lies, from the points the curve was fitted to; None
    with too few of them.

    The wider of two: errors of points taken as independent (`profile_interval`), and the runs left out one at a time
    (the delete-one jackknife over groups: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11),
    as the points of one run err together. The second takes FEWEST_RUNS runs.
    """
    check_level(level)
    if len(bpb) <= 3 or len(set(symbols)) < FEWEST_POINTS:
        return None
    first, alphas = float(symbols.min()), np.array([*ALPHAS, curve.alpha])[:, None]
    falling, new = (symbols / first) ** -alphas, (at / first) ** -alphas
    designs = np.stack([np.ones_like(falling), falling], axis=2)
    _, low, high = profile_interval(designs, np.concatenate([np.ones_like(new), new], axis=1), bpb, 3, level)
    half = _half_over_runs(curve, symbols, bpb, runs, at, level)
    middle = curve.bpb(at)
    return max(0.0, min(low, middle - half)), max(high, middle + half)


def profile_interval(
    designs: np.ndarray, news: np.ndarray, y: np.ndarray, parameters: int, level: float
) -> tuple[float, float, float]:
    """(best, low, high): the least-squares value of one more observation of a model that is linear in all but a few
    parameters, and its profile-t interval.

    `designs` [g, n, k] and `news` [g, k] are, for g choices of those few, X for the observations y [n] and x for the
    new one, which is x b; b is at least 0. A new value belongs to the interval if some choice, fitted to it as well,
    has a sum of squares of at most S (1 + t^2 / (n - p)), S the least for y alone, p = `parameters`, t Student's
    quantile of n - p degrees (Bates and Watts, Nonlinear Regression Analysis, 1988, section 6.1). Unlike an ellipse
    around the best fit it holds where the parameters are hardly known.
    """
    inverses = np.linalg.pinv(designs.mT @ designs)
    coefficients = (inverses @ (designs.mT @ y)[:, :, None])[:, :, 0]
    for index in np.flatnonzero(coefficients.min(axis=1) < 0.0):
        kept, coefficients[index] = nonnegative_fit(designs[index], y)
        inverses[index] = 0.0
        used = designs[index][:, kept]
        inverses[index][np.ix_(kept, kept)] = np.linalg.pinv(used.T @ used)
    squares = np.sum((y - (designs @ coefficients[:, :, None])[:, :, 0]) ** 2, axis=1)
    middles = np.sum(news * coefficients, axis=1)
    spreads = 1.0 + np.sum(news * (inverses @ news[:, :, None])[:, :, 0], axis=1)
    degrees = len(y) - parameters
    limit = squares.min() * (1.0 + student_quantile(0.5 + level / 2.0, degrees) ** 2 / degrees)
    half = np.sqrt(np.maximum(limit - squares, 0.0) * spreads)
    allowed = squares <= limit
    low, high = (middles - half)[allowed].min(), (middles + half)[allowed].max()
    return float(middles[squares.argmin()]), float(low), float(high)


def nonnegative_fit(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the columns that are used, coefficients [k], 0 for the others): least squares, without the column
    of the most negative coefficient until there is none."""
    kept = np.arange(design.shape[1])
    while True:
        found = np.linalg.lstsq(design[:, kept], y, rcond=None)[0]
        if len(kept) == 1 or found.min() >= 0.0:
            break
        kept = np.delete(kept, int(found.argmin()))
    coefficients = np.zeros(design.shape[1])
    coefficients[kept] = np.maximum(found, 0.0)
    return kept, coefficients


def _half_over_runs(
    curve: ScalingCurve, symbols: np.ndarray, bpb: np.ndarray, runs: np.ndarray, at: float, level: float
) -> float:
    """Half of the jackknife's interval, with the scatter of a point in it; 0 where the runs are too few."""
    names = sorted(set(runs))
    if len(names) < FEWEST_RUNS:
        return 0.0
    without = [fit_curve(symbols[runs != name], bpb[runs != name]) for name in names]
    projected = np.array([fitted.bpb(at) for fitted in without if fitted is not None])
    if len(projected) < len(names):
        return math.inf
    scatter = float(np.mean((bpb - curve.c - curve.a * symbols**-curve.alpha) ** 2))
    variance = (len(names) - 1) * float(projected.var()) + scatter
    return student_quantile(0.5 + level / 2.0, len(names) - 1) * math.sqrt(variance)


def _with_asymptotes(symbols: np.ndarray, bpb: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sum of squared residuals in bpb, a, -alpha) for each c, [g] all; the sum is infinite where no curve falls."""
    x, above = np.log(symbols), bpb - c[:, None]
    is_below = above.min(axis=1) > 0.0
    above = np.where(is_below[:, None], above, 1.0)
    y, weight = np.log(above), above**2
    total = weight.sum(axis=1)
    x_off = x - ((weight @ x) / total)[:, None]
    y_mean = (weight * y).sum(axis=1) / total
    slope = (weight * x_off * (y - y_mean[:, None])).sum(axis=1) / (weight * x_off**2).sum(axis=1)
    falls = slope < 0.0
    slope = np.where(falls, slope, 0.0)
    a = np.exp(y_mean - slope * (weight @ x) / total)
    squares = ((above - a[:, None] * symbols ** slope[:, None]) ** 2).sum(axis=1)
    return np.where(is_below & falls, squares, np.inf), a, slope
