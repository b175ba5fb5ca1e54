"""The scaling fit bpb = c + a T^-alpha over training symbols T (docs/techniques.md 12.1).

Only scores taken at the full, constant learning rate belong in it: in the warm-down the score falls much faster
than with more data alone, so such points bend the curve and the extrapolation promises too much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shared.errors import UserError
from shared.runs.metrics import Event, read_events
from shared.runs.run_directory import RunDirectory
from shared.runs.scaling_curve import ScalingCurve
from shared.spec import Spec
from shared.spec.difference import FREE_ON_CURVE, first_difference

FEWEST_POINTS = 5
# The grid over min(bpb) - c: logarithmic, this wide at first, then refined around the best value.
GRID_POINTS, GRID_ROUNDS, GRID_DECADES = 81, 8, 6.0


@dataclass(frozen=True)
class Point:
    """A validation score of a run after `symbols` training symbols at constant learning rate."""

    run: str
    step: int
    symbols: int
    bpb: float


@dataclass(frozen=True)
class ScalingResult:
    """A fitted curve with its residuals: `residuals_bpb` measured minus fitted, in the order of `points`;
    `last_out_bpb` measured minus predicted at the largest T by a fit to all smaller T, None if that fit has too
    few different T or no falling curve."""

    curve: ScalingCurve
    points: tuple[Point, ...]
    residuals_bpb: tuple[float, ...]
    r_squared: float
    last_out_bpb: float | None

    @property
    def rms_bpb(self) -> float:
        """Root mean square of the residuals."""
        return math.sqrt(sum(value**2 for value in self.residuals_bpb) / len(self.residuals_bpb))

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values; c, a and alpha are what `bytetwin preflight --fit` reads."""
        return {
            **asdict(self.curve),
            "points": [
                {**asdict(point), "residual_bpb": residual}
                for point, residual in zip(self.points, self.residuals_bpb, strict=True)
            ],
            "rms_bpb": self.rms_bpb,
            "r_squared": self.r_squared,
            "leave_last_out_bpb": self.last_out_bpb,
        }


def fit_points(points: Sequence[Point]) -> ScalingResult:
    """Fit the curve. Raises UserError for fewer than FEWEST_POINTS different T, or a score that does not fall."""
    ordered = sorted(points, key=lambda point: (point.symbols, point.run))
    symbols = np.array([point.symbols for point in ordered], np.float64)
    bpb = np.array([point.bpb for point in ordered], np.float64)
    if len(set(symbols)) < FEWEST_POINTS:
        raise UserError(
            f"a scaling fit needs validations at {FEWEST_POINTS} or more different steps at constant learning rate, "
            f"there are {len(set(symbols))}: set training.val_every_steps, and a short schedule.warmdown_frac"
        )
    curve = fit_curve(symbols, bpb)
    if curve is None or bpb.min() == bpb.max():
        raise UserError("the score does not fall with training as c + a T^-alpha does: no fit")
    residuals = bpb - (curve.c + curve.a * symbols**-curve.alpha)
    spread = float(np.sum((bpb - bpb.mean()) ** 2))
    return ScalingResult(
        curve,
        tuple(ordered),
        tuple(float(value) for value in residuals),
        1.0 - float(np.sum(residuals**2)) / spread,
        _leave_last_out(symbols, bpb),
    )


def fit_curve(symbols: np.ndarray, bpb: np.ndarray) -> ScalingCurve | None:
    """Least squares in bpb: c on a logarithmic grid of min(bpb) - c, refined; for each c the line of ln(bpb - c)
    over ln T, weighted by (bpb - c)^2 so that it too minimises errors in bpb. c is at least 0. None if no c gives
    a falling curve."""
    lowest = float(bpb.min())
    centre, width = -GRID_DECADES / 2.0, GRID_DECADES / 2.0
    best: tuple[float, ScalingCurve] | None = None
    for _ in range(GRID_ROUNDS):
        exponents = np.linspace(centre - width, min(0.0, centre + width), GRID_POINTS)
        for exponent in exponents:
            found = _with_asymptote(symbols, bpb, lowest * (1.0 - 10.0**exponent))
            if found is not None and (best is None or found[0] < best[0]):
                best, centre = found, float(exponent)
        width = max(2.0 * float(exponents[1] - exponents[0]), 1e-12)
    return best[1] if best is not None else None


def _with_asymptote(symbols: np.ndarray, bpb: np.ndarray, c: float) -> tuple[float, ScalingCurve] | None:
    """(sum of squared residuals in bpb, curve) for one c; None if the curve does not fall."""
    above = bpb - c
    if above.min() <= 0.0:
        return None
    x, y, weight = np.log(symbols), np.log(above), above**2
    x_mean, y_mean = np.average(x, weights=weight), np.average(y, weights=weight)
    slope = np.sum(weight * (x - x_mean) * (y - y_mean)) / np.sum(weight * (x - x_mean) ** 2)
    if not slope < 0.0:
        return None
    curve = ScalingCurve(c, float(np.exp(y_mean - slope * x_mean)), float(-slope))
    return float(np.sum((above - curve.a * symbols**slope) ** 2)), curve


def _leave_last_out(symbols: np.ndarray, bpb: np.ndarray) -> float | None:
    """Measured minus predicted at the largest T, mean over the points there."""
    last = symbols == symbols.max()
    if len(set(symbols[~last])) < FEWEST_POINTS - 1:
        return None
    curve = fit_curve(symbols[~last], bpb[~last])
    return None if curve is None else float(bpb[last].mean()) - curve.bpb(float(symbols.max()))


def run_points(run: RunDirectory) -> list[Point]:
    """The validations of a run at the full learning rate, one for each step."""
    batch_symbols = run.read_spec().training.batch_symbols
    events = read_events(run.metrics_path)
    steps = sorted((event for event in events if event["event"] == "step"), key=lambda event: event["step"])
    scores = {
        event["step"]: float(event["bpb"]) for event in events if event["event"] == "validation" and "bpb" in event
    }
    return [
        Point(str(run.path), step, step * batch_symbols, bpb)
        for step, bpb in sorted(scores.items())
        if step > 0 and _at_full_rate(steps, step)
    ]


def check_one_curve(runs: Sequence[tuple[RunDirectory, Spec]]) -> None:
    """Raise UserError unless the runs train one spec that may differ in seed and length."""
    first_run, first = runs[0]
    for run, spec in runs[1:]:
        found = first_difference(first, spec, FREE_ON_CURVE)
        if found is not None:
            raise UserError(
                f"{first_run.path} has {found.key} = {found.first!r}, {run.path} has {found.second!r}: "
                "one curve belongs to one spec, apart from seed and length"
            )
        if run.read_train_text() != first_run.read_train_text():
            raise UserError(
                f"{first_run.path} was trained on {first.data.train} with sha256 {first_run.read_train_text()[:16]}, "
                f"{run.path} on {spec.data.train} with {run.read_train_text()[:16]}: one curve belongs to one text"
            )


def _at_full_rate(steps: Sequence[Event], step: int) -> bool:
    """Whether the last logged step up to this one and the next had the full rate: schedules rise, stay and
    fall once, so everything between had it too."""
    before = [event for event in steps if event["step"] <= step]
    after = [event for event in steps if event["step"] >= step]
    return bool(before) and bool(after) and before[-1].get("lr_factor") == after[0].get("lr_factor") == 1.0
