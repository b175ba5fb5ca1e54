"""Ternary codes: groups worked by hand, short last groups, error feedback, bits, hostile parts."""

from __future__ import annotations

import brotli
import numpy as np
import pytest

from shared.artifact.budget import entropy_bits
from shared.errors import ArtifactError
from shared.quantisers import InputStatistics, Ternary
from shared.quantisers.gptq import error_on_inputs
from shared.tolerances import GAUSSIAN_CODE_BITS_ABS
from tests.implementations import normal


def test_groups_worked_by_hand():
    """Means of magnitudes are 2, 1 and 3; half of one is the border."""
    weights = np.array([[4.0, -3.0, 0.5, -0.5, 1.5, 0.4, -1.1, 1.0, -3.0, 3.0]], np.float32)
    parts = Ternary(group=4).encode(weights)
    np.testing.assert_allclose(parts["scales"], [2.0, 1.0, 3.0], rtol=1e-3)
    assert parts["codes"].tolist() == [[1, -1, 0, 0, 1, 0, -1, 1, -1, 1]]
    decoded = Ternary(group=4).decode((1, 10), parts)
    np.testing.assert_allclose(decoded, [[2, -2, 0, 0, 1, 0, -1, 1, -3, 3]], rtol=1e-3)


@pytest.mark.parametrize("columns", [1, 127, 128, 129, 300])
def test_scales_are_the_means_of_groups_within_rows(columns: int):
    weights = normal(columns, 7, columns)
    parts = Ternary().encode(weights)
    starts = range(0, columns, 128)
    expected = np.stack([np.abs(weights[:, at : at + 128]).mean(axis=1) for at in starts], axis=1)
    np.testing.assert_allclose(parts["scales"].reshape(7, -1), expected, rtol=1.5e-3)
    for part in Ternary().parts(weights.shape):
        assert parts[part.name].shape == part.shape and parts[part.name].dtype == np.dtype(part.dtype)


def test_error_feedback_helps_and_uses_the_scale_of_each_group():
    x, weights = normal(1, 400, 60) @ normal(2, 60, 60), normal(3, 20, 60)
    statistics = InputStatistics(400, x.astype(np.float64).T @ x)
    plain, with_feedback = Ternary(group=20), Ternary(20, "gptq")
    decoded = [coded.decode(weights.shape, coded.encode(weights, statistics)) for coded in (plain, with_feedback)]
    errors = [error_on_inputs(each - weights, statistics.gram / 400) for each in decoded]
    assert errors[1] < 0.8 * errors[0]
    assert set(np.abs(decoded[1][0, 20:40]).tolist()) <= {0.0, float(with_feedback.encode(weights)["scales"][1])}


@pytest.mark.slow
def test_gaussian_codes_cost_what_is_said_and_five_to_a_byte_cost_more():
    codes = Ternary().encode(normal(4, 512, 1024))["codes"]
    assert Ternary().gaussian_code_bits(1024) == pytest.approx(entropy_bits(codes), abs=GAUSSIAN_CODE_BITS_ABS)
    packed = (codes.reshape(-1)[: codes.size // 5 * 5].reshape(-1, 5) + 1) @ 3 ** np.arange(5)
    in_base_three, as_bytes = (
        8 * len(brotli.compress(raw.astype(np.uint8).tobytes())) / codes.size for raw in (packed, codes)
    )
    assert entropy_bits(codes) < in_base_three < as_bytes
    assert (round(in_base_three, 2), round(as_bytes, 2)) == (1.59, 1.65)


def test_what_no_weights_have_is_refused():
    coded, parts = Ternary(), Ternary().encode(normal(0, 3, 4))
    assert coded.is_valid(parts)
    for name, value in [("codes", 2), ("codes", -2), ("scales", np.nan), ("scales", -1.0)]:
        wrong = parts[name].copy()
        wrong.flat[0] = value
        assert not coded.is_valid({**parts, name: wrong}), (name, value)
    with pytest.raises(ArtifactError, match=r"weight 1e\+08 is too large for a float16 scale"):
        coded.encode(np.array([[1e8, 0.0]], np.float32))
