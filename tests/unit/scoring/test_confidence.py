"""The interval of a score: Student's t against scipy, the ratio estimator by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import UserError
from shared.scoring.confidence import effective_number, ratio_interval, student_quantile, student_tail
from tests.bench.coverage import DISTRIBUTIONS, HIGHEST, LOWEST, coverage

LN2 = math.log(2.0)


@settings(max_examples=150)
@given(st.floats(1.0, 5000.0), st.floats(1e-7, 0.5))
def test_quantile_and_tail_are_those_of_scipy(degrees: float, tail: float) -> None:
    """Any number of degrees: n_eff - 1 is no integer."""
    expected = scipy.stats.t.isf(tail, degrees)
    assert student_quantile(1.0 - tail, degrees) == pytest.approx(expected, rel=1e-7, abs=1e-7)
    assert student_quantile(tail, degrees) == pytest.approx(-expected, rel=1e-7, abs=1e-7)
    assert student_tail(expected, degrees) == pytest.approx(tail, rel=1e-8)
    assert student_tail(-expected, degrees) == pytest.approx(1.0 - tail, rel=1e-8)


def test_the_ends_of_the_tail() -> None:
    values = (-math.inf, -1e200, 0.0, 1e200, math.inf)
    assert [student_tail(value, 3.0) for value in values] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert student_quantile(0.975, 10**9) == pytest.approx(1.95996, abs=1e-5)


def test_interval_by_hand() -> None:
    """Six documents of 1 and 3 bytes with 2 and 4 bits: R = 1.5, residuals 0.5 and -0.5, which from the ratio of the
    other documents are 0.5 / (1 - 1/12) and -0.5 / (1 - 3/12); n_eff = 12^2 / 30 = 4.8."""
    bits, size = np.tile([2.0, 4.0], 3), np.tile([1.0, 3.0], 3)
    few = ratio_interval(bits * LN2, size, 0.95)
    assert (few.low_bpb, few.num_units, few.effective_units) == (None, 6, pytest.approx(4.8))
    found = ratio_interval(np.tile(bits, 2) * LN2, np.tile(size, 2), 0.95)
    error = math.sqrt(6 * (0.5 / (1 - 1 / 24)) ** 2 + 6 * (0.5 / (1 - 3 / 24)) ** 2) / 24
    half = scipy.stats.t.ppf(0.975, 9.6 - 1) * error
    assert found.low_bpb == pytest.approx(1.5 - half, rel=1e-9)
    assert found.high_bpb == pytest.approx(1.5 + half, rel=1e-9)
    assert (found.level, found.units, found.num_units, found.reason) == (0.95, "documents", 12, None)


def test_residuals_are_from_the_ratio_of_the_other_documents() -> None:
    """The formula in closed form against leaving every document out in turn."""
    rng = np.random.default_rng(3)
    size = rng.uniform(1.0, 9.0, 12)
    bits = size * rng.uniform(1.0, 3.0, 12)
    left_out = [bits[i] - (bits.sum() - bits[i]) / (size.sum() - size[i]) * size[i] for i in range(12)]
    error = math.sqrt(sum(value**2 for value in left_out)) / size.sum()
    half = scipy.stats.t.ppf(0.95, effective_number(size) - 1) * error
    found = ratio_interval(bits * LN2, size, 0.9)
    assert found.high_bpb == pytest.approx(bits.sum() / size.sum() + half, rel=1e-9)


def test_equal_documents_leave_no_doubt() -> None:
    found = ratio_interval(np.full(7, 3.0 * LN2), np.full(7, 2.0), 0.9)
    assert found.low_bpb == pytest.approx(1.5) and found.high_bpb == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ([5.0], "1 document, at least 5 are needed"),
        ([1.0] * 4, "4 documents, at least 5 are needed"),
        ([0.0] * 9, "9 documents, at least 5 are needed"),
        (
            [70.0, *[1.0] * 30],
            "31 documents, the longest with 70% of the bytes, count as 2.0 of equal length; at least 5 are needed",
        ),
    ],
)
def test_too_few_documents_have_no_interval_and_a_reason(sizes: list[float], reason: str) -> None:
    found = ratio_interval(np.array(sizes) * 2.0, np.array(sizes), 0.95)
    assert (found.low_bpb, found.high_bpb, found.num_units) == (None, None, len(sizes))
    assert found.reason == reason


@settings(max_examples=50)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=40), st.integers(1, 1000))
def test_effective_number_lies_between_one_and_the_count(sizes: list[int], factor: int) -> None:
    found = effective_number(np.array(sizes))
    assert 1.0 - 1e-12 <= found <= len(sizes) + 1e-9
    assert effective_number(np.array(sizes) * factor) == pytest.approx(found, rel=1e-12)
    assert effective_number(np.array([*sizes, 0])) == pytest.approx(found, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_interval_covers_the_truth_as_often_as_it_says(name: str) -> None:
    """A short form of tests.bench.coverage."""
    found = coverage(name, draws=300, seed=1)
    slack = 4 * math.sqrt(0.95 * 0.05 / found.intervals)
    assert found.intervals == 300 and LOWEST - slack <= found.covered_frac <= HIGHEST + slack


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, math.nan])
def test_impossible_level(level: float) -> None:
    with pytest.raises(UserError, match="confidence"):
        ratio_interval(np.ones(3), np.ones(3), level)
