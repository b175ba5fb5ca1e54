"""The scaling fit in a JSON file: bits per byte as a function of training symbols (docs/techniques.md 12.1).

`bytetwin fit` writes it, with the points it was fitted to; `bytetwin preflight` reads it to predict a run's score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import RunError, SpecError, UserError
from shared.parsing import parse_json
from shared.runs.curve_fit import ScalingCurve, project
from shared.runs.run_directory import RunDirectory
from shared.spec import Spec
from shared.spec.difference import FREE_ON_CURVE, first_difference, free_in_run

FIT_FILE = "fit.json"
LEVEL = 0.95


@dataclass(frozen=True)
class Point:
    """A validation score of a run after `symbols` training symbols at constant learning rate."""

    run: str
    step: int
    symbols: int
    bpb: float


@dataclass(frozen=True)
class Projection:
    """What a fit gives after `symbols` training symbols, in bits per byte. A score lies between `low_bpb` and
    `high_bpb` at the confidence `level`; both are None where there are no points, or too few. `beyond` is how many
    times the most symbols of any point it is, 1 or less if it is no extrapolation; None without points."""

    symbols: float
    bpb: float
    low_bpb: float | None
    high_bpb: float | None
    beyond: float | None
    level: float = LEVEL

    @property
    def text(self) -> str:
        """The figure with its interval."""
        if self.low_bpb is None or self.high_bpb is None:
            return f"{self.bpb:.4f} bits per byte, no interval"
        return f"{self.bpb:.4f} bits per byte ({self.level:.0%}: {self.low_bpb:.4f} to {self.high_bpb:.4f})"

    @property
    def distance(self) -> str:
        """Whether that is an extrapolation, and how far."""
        if self.beyond is None:
            return "the file has no points, so how far that is from what was measured is not known"
        return (
            f"extrapolated to {self.beyond:.3g} times what was measured"
            if self.beyond > 1
            else "within what was measured"
        )


@dataclass(frozen=True)
class ScalingFit:
    """A curve and the points it was fitted to, none in a file written by hand. `source` names the file."""

    curve: ScalingCurve
    points: tuple[Point, ...] = ()
    source: str = ""

    def at(self, symbols: float, level: float = LEVEL) -> Projection:
        """The projected score of a run at constant learning rate."""
        found = None
        if self.points:
            runs = np.array([point.run for point in self.points])
            found = project(self.curve, *self.arrays, runs, symbols, level)
        low, high = found if found is not None and math.isfinite(found[1]) else (None, None)
        beyond = symbols / max(point.symbols for point in self.points) if self.points else None
        return Projection(symbols, self.curve.bpb(symbols), low, high, beyond, level)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(symbols, bits per byte) of the points, float64 [n] each."""
        return (
            np.array([point.symbols for point in self.points], np.float64),
            np.array([point.bpb for point in self.points], np.float64),
        )


def read_fit(path: Path) -> ScalingFit:
    """The fit in a JSON file with the numbers c, a and alpha, and the list `points` if it has one. Raises UserError
    naming file and field."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"--fit {path}: cannot be read ({reason})") from None
    except ValueError as error:
        raise UserError(f"--fit {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--fit {path}: must be an object with the numbers c, a and alpha")
    numbers = {name: _number(path, values, name) for name in ("c", "a", "alpha")}
    if numbers["alpha"] <= 0 or numbers["a"] < 0 or numbers["c"] < 0:
        raise UserError(f"--fit {path}: alpha must be above 0, a and c at least 0; it has {numbers}")
    return ScalingFit(ScalingCurve(**numbers), tuple(_points(path, values.get("points"))), str(path))


def matching_fit(spec: Spec, train_sha256: str, runs_dir: Path) -> ScalingFit | None:
    """The fit in a run's folder whose curve is that of the spec on this training text, the newest of several; None if
    there is none. A run or fit that cannot be read is not one."""
    found = []
    for path in runs_dir.glob(f"*/{FIT_FILE}"):
        run = RunDirectory(path.parent)
        try:
            if run.read_train_text() == train_sha256 and is_on_curve(run.read_spec(), spec):
                found.append((path.stat().st_mtime, str(path), read_fit(path)))
        except (OSError, RunError, SpecError, UserError):
            continue
    return max(found, key=lambda each: each[:2])[2] if found else None


def is_on_curve(first: Spec, second: Spec) -> bool:
    """Whether two specs differ only in what does not bend the curve of one training text: seed, length, schedule's
    end, cadence, memory, packing. How a score is taken is part of the curve."""
    free = (FREE_ON_CURVE | (free_in_run(first) & free_in_run(second))) - {"evaluation"}
    return first_difference(first, second, free) is None


def _points(path: Path, rows: Any) -> Iterator[Point]:
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict):
            raise UserError(f"--fit {path}: every one of points must be an object with symbols and bpb")
        symbols, bpb = _number(path, row, "symbols"), _number(path, row, "bpb")
        if symbols < 1 or bpb <= 0:
            raise UserError(f"--fit {path}: symbols = {symbols:g}, bpb = {bpb:g} of a point: both must be above 0")
        yield Point(str(row.get("run", "")), 0, int(symbols), bpb)


def _number(path: Path, values: dict[str, Any], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"--fit {path}: {name} = {value!r}; the file must give c, a and alpha as finite numbers")
    return float(value)
