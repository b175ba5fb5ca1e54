"""The scaling curve: bits per byte as a function of training symbols (docs/techniques.md 12.1).

`bytetwin fit` fits it to the validations of runs; `bytetwin preflight --fit` reads it to predict a run's score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.parsing import parse_json


@dataclass(frozen=True)
class ScalingCurve:
    """bpb = c + a T^-alpha, T in training symbols."""

    c: float
    a: float
    alpha: float

    def bpb(self, symbols: float) -> float:
        """The score that the curve gives after so many training symbols."""
        return float(self.c + self.a * symbols**-self.alpha)


def read_curve(path: Path) -> ScalingCurve:
    """The curve in a JSON file with the numbers c, a and alpha. Raises UserError naming file and field."""
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
    return ScalingCurve(**numbers)


def _number(path: Path, values: dict[str, Any], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"--fit {path}: {name} = {value!r}; the file must give c, a and alpha as finite numbers")
    return float(value)
