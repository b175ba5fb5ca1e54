"""SDClip: its scale against the published formula, its Hessian form, its bits, and hostile parts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shared.artifact.budget import entropy_bits
from shared.engine.package import make_ops
from shared.errors import ArtifactError
from shared.quantisers import InputStatistics, RowMax, SdClip
from shared.quantisers.sd_clip import sqrt_as_float16
from shared.tolerances import GAUSSIAN_CODE_BITS_ABS
from tests.implementations import normal


def test_codes_and_scales_of_a_row_worked_by_hand():
    """The deviation of 3, 1, -1, -3 is sqrt(20 / 3)."""
    row = np.array([[3.0, 1.0, -1.0, -3.0]], np.float32)
    parts = SdClip(6, clip_sd=12.4).encode(row)
    assert parts["scales"][0] == pytest.approx(0.4 * (20 / 3) ** 0.5, rel=2e-3)  # 1.033
    assert parts["codes"].tolist() == [[3, 1, -1, -3]]
    assert SdClip(4, clip_sd=2.0).encode(row)["codes"].tolist() == [[4, 1, -1, -4]]
    assert SdClip(4, clip_sd=0.7).encode(row)["codes"].tolist() == [[7, 4, -4, -7]]  # clipped


@pytest.mark.parametrize("columns", [2, 3, 40, 512, 2048, 9000])
@pytest.mark.parametrize(("bits", "k"), [(6, 12.85), (8, 20.0), (7, 15.0)])
def test_the_scale_is_the_published_one_to_a_tenth_of_a_percent(columns: int, bits: int, k: float):
    weights = normal(columns, 50, columns) + 0.3
    expected = k * weights.std(axis=1, ddof=1, dtype=np.float64) / (2 ** (bits - 1) - 1)
    # Rounding to the steps that the deviation is taken in: 0.3 of a step for each weight.
    step = np.abs(weights).max(axis=1) / min(127, math.isqrt(2**24 // columns)) * k / (2 ** (bits - 1) - 1)
    error = np.abs(SdClip(bits, clip_sd=k).encode(weights)["scales"] - expected)
    assert (error <= 1e-3 * expected + step / columns**0.5).all()


def test_rows_without_a_deviation_have_the_scale_of_row_max():
    weights = np.array([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]], np.float32)
    for found, expected in zip(SdClip(6).encode(weights).values(), RowMax(6).encode(weights).values(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert SdClip(6).encode(weights[:, :1])["codes"].tolist() == [[31], [0]]


def test_the_hessian_form_widens_rows_that_matter_more_than_the_mean():
    """Two rows of sizes 1 and 2 whose inputs are 1 and 3 times as strong: r = 2/3 and 4/3."""
    weights, gram = np.array([[1.0, -1.0], [2.0, -2.0]], np.float32), InputStatistics(2, 2 * np.diag([1.0, 3.0]))
    plain, hessian = SdClip(6), SdClip(6, hessian_clip=0.175)
    ratio = hessian.encode(weights, gram)["scales"] / plain.encode(weights)["scales"]
    np.testing.assert_allclose(ratio, [1 - 0.175 / 3, 1 + 0.175 / 3], rtol=2e-3)
    assert hessian.needs_statistics and not hessian.has_surrogate and plain.has_surrogate
    np.testing.assert_array_equal(hessian.encode(weights)["scales"], plain.encode(weights)["scales"])
    np.testing.assert_array_equal(hessian.encode(weights, InputStatistics(2, np.zeros((2, 2))))["scales"][0] > 0, True)
    assert hessian.settled((2, 2), None) == plain and hessian.settled((2, 2), gram) == hessian


@pytest.mark.parametrize(("bits", "k"), [(6, 12.85), (8, 20.0), (4, 2.0)])
def test_gaussian_codes_cost_what_is_said(bits: int, k: float):
    codes = SdClip(bits, clip_sd=k).encode(normal(1, 800, 1000))["codes"]
    expected = pytest.approx(entropy_bits(codes), abs=GAUSSIAN_CODE_BITS_ABS)
    assert SdClip(bits, clip_sd=k).gaussian_code_bits(1000) == expected


def test_what_no_weights_have_is_refused():
    coded, parts = SdClip(6), SdClip(6).encode(normal(0, 3, 4))
    assert coded.is_valid(parts)
    for name, value in [("codes", 32), ("codes", -32), ("scales", np.nan), ("scales", np.inf), ("scales", -1.0)]:
        wrong = parts[name].copy()
        wrong.flat[0] = value
        assert not coded.is_valid({**parts, name: wrong}), (name, value)
    with pytest.raises(ArtifactError, match=r"weight 3e\+07 is too large for int6"):
        coded.encode(np.array([[3e7, 0.0]], np.float32))
    with pytest.raises(ArtifactError, match="Gram matrix of its inputs is not finite"):
        SdClip(6, hessian_clip=0.1).encode(normal(0, 1, 2), InputStatistics(1, np.diag([np.nan, 1.0])))


@pytest.mark.parametrize("name", ["numpy", "mlx", "torch"])
def test_roots_of_float16_numbers_are_the_nearest_on_every_engine(name: str):
    # From the smallest variance of codes on. The root of 4094 is 6e-8 below the middle of 63.96875 and 64.
    squares = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    squares = squares[squares >= 2.0**-12]
    ops = make_ops(name)
    roots = ops.to_numpy(sqrt_as_float16(ops, ops.asarray(squares.astype(np.float32))))
    assert (roots == np.sqrt(squares).astype(np.float16)).all()
