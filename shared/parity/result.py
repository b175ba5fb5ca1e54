"""The result of comparing two implementations, and the measures of their difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shared.spec import Spec, spec_id, spec_to_dict

EXACT = 0.0

# A parameter whose gradient is this much smaller (rms) than the model's is measured against this share of it. Rounding
# is 1e-6 to 4e-6 of the model's rms gradient in every parameter, also where the gradient is zero in exact
# arithmetic, like that of a query that sees one key; so a small gradient has few digits.
SMALL_GRADIENT_FRAC = 5e-2
# The gradient of a scalar gate is one sum over all positions and channels. Now and then it nearly cancels (to 0.9 % of
# the model's rms gradient in one draw of the random specs), and then so do its digits: below this many numbers the
# floor of a parameter stops shrinking with its size.
FEW_NUMBERS = 16


@dataclass(frozen=True)
class ParityRow:
    """One line of the table. `measured` and `tolerance` share `unit`; a tolerance of 0 means equal to the
    last bit. `worst` names the parameter, layer or position where the difference is largest."""

    check: str
    pair: str
    measured: float
    tolerance: float
    unit: str
    worst: str = ""

    @property
    def passed(self) -> bool:
        """Whether the difference is a number within the tolerance."""
        return self.measured <= self.tolerance

    def to_document(self) -> dict[str, Any]:
        """As JSON; `measured` is null where it is not a finite number."""
        return {
            "check": self.check,
            "pair": self.pair,
            "measured": self.measured if math.isfinite(self.measured) else None,
            "tolerance": self.tolerance,
            "unit": self.unit,
            "passed": self.passed,
            "worst": self.worst,
        }


@dataclass(frozen=True)
class ParityReport:
    """All rows for one spec. `spec` is the reduced one that was run, `reductions` says how it differs."""

    name: str
    spec: Spec
    reductions: tuple[str, ...]
    implementations: tuple[str, ...]
    rows: tuple[ParityRow, ...] = field(default=())
    elapsed_s: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every row is within its tolerance."""
        return all(row.passed for row in self.rows)

    def to_document(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "name": self.name,
            "spec_id": spec_id(self.spec),
            "spec": spec_to_dict(self.spec),
            "reductions": list(self.reductions),
            "implementations": list(self.implementations),
            "rows": [row.to_document() for row in self.rows],
            "passed": self.passed,
            "elapsed_s": round(self.elapsed_s, 3),
        }


def max_abs_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """(largest |a - b|, its index); NaN anywhere counts as infinite."""
    difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    difference = np.where(np.isnan(difference), np.inf, difference)
    index = np.unravel_index(int(np.argmax(difference)), difference.shape)
    return float(difference[index]), tuple(map(int, index))


def relative_l2(a: np.ndarray, b: np.ndarray, floor: float = 0.0) -> float:
    """|a - b| / max(|a|, |b|, floor) in the L2 norm; 0 where both are zero, infinite for a NaN."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    difference = float(np.linalg.norm(a - b))
    if difference == 0.0:
        return 0.0
    ratio = difference / max(float(np.linalg.norm(a)), float(np.linalg.norm(b)), floor)
    return math.inf if math.isnan(ratio) else ratio


def worst_relative_l2(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """(largest relative L2 difference of one parameter, its name)."""
    return max((difference, name) for name, difference in relative_differences(a, b).items())


def relative_differences(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], small_frac: float = 0.0
) -> dict[str, float]:
    """The relative L2 difference of every parameter, by name.

    `small_frac` sets the floor of a parameter at this share of the root mean square over all of them, that of a
    parameter of few numbers at the share of FEW_NUMBERS.
    """
    assert a.keys() == b.keys()
    count = sum(value.size for value in a.values())
    square = sum(float(np.vdot(value, value)) for value in a.values())
    rms = math.sqrt(square / count) if math.isfinite(square) else 0.0
    floors = {name: small_frac * rms * math.sqrt(max(value.size, FEW_NUMBERS)) for name, value in a.items()}
    return {name: relative_l2(a[name], b[name], floors[name]) for name in a}
