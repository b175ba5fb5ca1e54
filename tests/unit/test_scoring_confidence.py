"""The interval of a score: Student's t against tables, the ratio estimator by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shared.errors import UserError
from shared.scoring.confidence import _expanded_quantile, ratio_interval, student_quantile

LN2 = math.log(2.0)

# Two-sided tables of Student's t, as printed in textbooks to the digits given.
TABLE = [
    (0.975, 1, 12.7062, 1e-4),
    (0.995, 1, 63.6567, 1e-4),
    (0.975, 2, 4.30265, 1e-5),
    (0.995, 2, 9.92484, 1e-5),
    (0.95, 5, 2.01505, 1e-5),
    (0.975, 10, 2.22814, 1e-5),
    (0.995, 29, 2.75639, 1e-5),
    (0.975, 30, 2.04227, 1e-5),
    (0.975, 120, 1.97993, 1e-5),
    (0.975, 10**9, 1.95996, 1e-5),
]


@pytest.mark.parametrize(("probability", "degrees", "expected", "printed_to"), TABLE)
def test_student_quantile_matches_tables(probability: float, degrees: int, expected: float, printed_to: float) -> None:
    assert abs(student_quantile(probability, degrees) - expected) <= printed_to
    assert student_quantile(1.0 - probability, degrees) == -student_quantile(probability, degrees)


@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995, 0.9995])
def test_one_and_two_degrees_in_closed_form(probability: float) -> None:
    assert student_quantile(probability, 1) == pytest.approx(math.tan(math.pi * (probability - 0.5)), rel=1e-9)
    a = 2.0 * probability - 1.0
    assert student_quantile(probability, 2) == pytest.approx(a * math.sqrt(2.0 / (1.0 - a * a)), rel=1e-9)


@pytest.mark.parametrize("probability", [0.75, 0.975, 0.9995])
@pytest.mark.parametrize("degrees", [499, 500])
def test_sum_and_expansion_meet(probability: float, degrees: int) -> None:
    assert _expanded_quantile(probability, degrees) == pytest.approx(student_quantile(probability, degrees), rel=1e-9)


def test_interval_by_hand() -> None:
    """Units of 1 and 3 bytes with 2 and 4 bits: ratio 1.5, residuals 0.5 and -0.5, variance 2/1 * 0.5 / 16."""
    found = ratio_interval(np.array([2.0, 4.0]) * LN2, np.array([1.0, 3.0]), 0.95, "documents")
    half = 12.7062047 * 0.25
    assert found.low_bpb == pytest.approx(1.5 - half, rel=1e-6)
    assert found.high_bpb == pytest.approx(1.5 + half, rel=1e-6)
    assert (found.level, found.units, found.num_units) == (0.95, "documents", 2)


def test_equal_units_leave_no_doubt() -> None:
    found = ratio_interval(np.full(7, 3.0 * LN2), np.full(7, 2.0), 0.9, "windows")
    assert found.low_bpb == pytest.approx(1.5) and found.high_bpb == pytest.approx(1.5)


def test_one_unit_has_no_interval() -> None:
    found = ratio_interval(np.array([2.0]), np.array([1.0]), 0.95, "windows")
    assert found.low_bpb is None and found.high_bpb is None and found.num_units == 1


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Documents of random length, each with its own difficulty; the true ratio is 2 bits per byte."""
    rng = np.random.default_rng(0)
    trials, covered = 1500, 0
    for _ in range(trials):
        size = rng.integers(50, 150, 40).astype(float)
        bits = size * (2.0 + 0.3 * rng.standard_normal(40))
        found = ratio_interval(bits * LN2, size, 0.9, "documents")
        assert found.low_bpb is not None and found.high_bpb is not None
        covered += found.low_bpb <= 2.0 <= found.high_bpb
    # Four standard deviations of a binomial share around 0.9.
    assert abs(covered / trials - 0.9) < 4 * math.sqrt(0.9 * 0.1 / trials)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, math.nan])
def test_impossible_level(level: float) -> None:
    with pytest.raises(UserError, match="confidence"):
        ratio_interval(np.ones(3), np.ones(3), level, "documents")
