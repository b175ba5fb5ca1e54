"""The scaling fit bpb = c + a T^-alpha over training symbols T (docs/techniques.md 12.1).

Only scores taken at the full, constant learning rate belong in it: in the warm-down the score falls much faster
than with more data alone, so such points bend the curve and the extrapolation promises too much.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shared.errors import UserError
from shared.runs.curve_fit import FEWEST_POINTS, ScalingCurve, fit_curve
from shared.runs.metrics import Event, read_events
from shared.runs.run_directory import RunDirectory
from shared.runs.scaling_curve import Point, ScalingFit
from shared.spec import Spec
from shared.spec.difference import FREE_ON_CURVE, first_difference

OUTSIDE = "outside of the steps asked for"


@dataclass(frozen=True)
class LeftOut:
    """A validation that is no point of the curve, and why."""

    run: str
    step: int
    reason: str


@dataclass(frozen=True)
class ScalingResult:
    """A fitted curve with its residuals: `residuals_bpb` measured minus fitted, in the order of `points`;
    `last_out_bpb` measured minus predicted at the largest T by a fit to all smaller T, None if that fit has too
    few different T or no falling curve."""

    fit: ScalingFit
    residuals_bpb: tuple[float, ...]
    r_squared: float
    last_out_bpb: float | None

    @property
    def curve(self) -> ScalingCurve:
        """The curve."""
        return self.fit.curve

    @property
    def points(self) -> tuple[Point, ...]:
        """The points, by T."""
        return self.fit.points

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
        ScalingFit(curve, tuple(ordered)),
        tuple(float(value) for value in residuals),
        1.0 - float(np.sum(residuals**2)) / spread,
        _leave_last_out(symbols, bpb),
    )


def _leave_last_out(symbols: np.ndarray, bpb: np.ndarray) -> float | None:
    """Measured minus predicted at the largest T, mean over the points there."""
    last = symbols == symbols.max()
    if len(set(symbols[~last])) < FEWEST_POINTS - 1:
        return None
    curve = fit_curve(symbols[~last], bpb[~last])
    return None if curve is None else float(bpb[last].mean()) - curve.bpb(float(symbols.max()))


def run_points(
    run: RunDirectory, from_step: int | None = None, to_step: int | None = None
) -> tuple[list[Point], list[LeftOut]]:
    """The validations of a run at the full learning rate, one for each step, and those that are left out.

    Raises UserError where steps are asked for and one that was validated among them was not at the full rate.
    """
    batch_symbols = run.read_spec().training.batch_symbols
    events = read_events(run.metrics_path)
    steps = sorted((event for event in events if event["event"] == "step"), key=lambda event: event["step"])
    scores = {
        event["step"]: float(event["bpb"]) for event in events if event["event"] == "validation" and "bpb" in event
    }
    points, left_out = [], []
    for step, bpb in sorted(scores.items()):
        inside = (from_step is None or step >= from_step) and (to_step is None or step <= to_step)
        reason = _why_not(steps, step) if inside else OUTSIDE
        if reason is None:
            points.append(Point(str(run.path), step, step * batch_symbols, bpb))
        elif inside and (from_step, to_step) != (None, None):
            raise UserError(f"{run.path}: the validation at step {step} is {reason}, it is no point of the curve")
        else:
            left_out.append(LeftOut(str(run.path), step, reason))
    return points, left_out


def reasons_text(left_out: Sequence[LeftOut]) -> str:
    """How many validations were left out, by reason."""
    counts = Counter(each.reason for each in left_out)
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


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


def _why_not(steps: Sequence[Event], step: int) -> str | None:
    """Why a validation was not at the full rate, None if it was: the last logged step up to it and the next had that
    rate. Schedules rise, stay and fall once, so everything between had it too."""
    before = [event.get("lr_factor") for event in steps if event["step"] <= step]
    after = [event.get("lr_factor") for event in steps if event["step"] >= step]
    if step == 0:
        return "before the first step"
    if not before or not after:
        return "not between logged steps, so its learning rate is not known"
    if before[-1] == after[0] == 1.0:
        return None
    return "in the warm-up" if 1.0 in after else "in the warm-down"
