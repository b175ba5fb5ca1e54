"""Clip search: the best of five quantiles, tried one by one."""

from __future__ import annotations

import numpy as np
import pytest

from shared.artifact.budget import entropy_bits
from shared.quantisers import ClipSearch, InputStatistics, RowMax
from shared.quantisers.clip_search import QUANTILES
from shared.tolerances import SAMPLED_CODE_BITS_ABS
from tests.implementations import normal


def error_with(weights: np.ndarray, quantile: float, limit: int) -> float:
    """Mean squared error of a matrix with this quantile of each row as the last code."""
    scales = (np.quantile(np.abs(weights), quantile, axis=1) / limit).astype(np.float16).astype(np.float64)[:, None]
    return float(((np.clip(np.rint(weights / scales), -limit, limit) * scales - weights) ** 2).mean())


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("kind", ["gaussian", "outliers"])
def test_it_is_the_best_of_the_five(bits: int, kind: str):
    weights = normal(bits, 40, 3000)
    if kind == "outliers":
        weights[:, ::1500] *= 12
    coded = ClipSearch(bits)
    error = float(((coded.decode(weights.shape, coded.encode(weights)) - weights) ** 2).mean())
    errors = [error_with(weights.astype(np.float64), quantile, coded.code_limit) for quantile in QUANTILES]
    assert error == pytest.approx(min(errors), rel=1e-5) and errors.index(min(errors)) < 4


def test_one_outlier_is_clipped_only_where_that_is_better_for_the_matrix():
    """A row of ones with one of 3: its quantile 0.999 over 2001 weights is 1, which errs by 2 once."""
    weights = np.ones((1, 2001), np.float32)
    weights[0, 7] = 3.0
    clipped = ClipSearch(4).encode(weights)
    assert clipped["scales"][0] == pytest.approx(1 / 7, rel=1e-3) and clipped["codes"].min() == 7
    weights[0, 7] = 100.0
    for found, expected in zip(ClipSearch(4).encode(weights).values(), RowMax(4).encode(weights).values(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_zeros_and_the_smallest_weights():
    weights = np.zeros((3, 40), np.float32)
    weights[1, 5], weights[2] = 1e-8, 1e-7
    coded = ClipSearch(6)
    parts = coded.encode(weights)
    assert coded.is_valid(parts) and np.isfinite(coded.decode(weights.shape, parts)).all()
    assert not coded.is_valid({**parts, "codes": parts["codes"] + np.int8(32)})


def test_it_takes_error_feedback_and_has_no_surrogate():
    coded, gram = ClipSearch(5, "gptq"), InputStatistics(1, np.full((30, 30), 0.5) + np.eye(30))
    weights = normal(0, 6, 30)
    assert coded.needs_statistics and not coded.has_surrogate
    assert (coded.encode(weights, gram)["codes"] != coded.grid.encode(weights)["codes"]).any()


@pytest.mark.parametrize("row_length", [64, 1000])
def test_gaussian_codes_cost_what_is_said(row_length: int):
    codes = ClipSearch(6).encode(normal(9, 500_000 // row_length, row_length))["codes"]
    expected = pytest.approx(entropy_bits(codes), abs=SAMPLED_CODE_BITS_ABS)
    assert ClipSearch(6).gaussian_code_bits(row_length) == expected
