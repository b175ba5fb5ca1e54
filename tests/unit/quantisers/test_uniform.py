"""Uniform steps: round trips, error bounds, feedback on both sides, and that training reads what is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.artifact.budget import entropy_bits
from shared.errors import ArtifactError
from shared.quantisers import Curvature, InputStatistics, Uniform
from shared.quantisers.two_sided import DAMP_FRAC, factors_of, two_sided
from shared.tolerances import GAUSSIAN_CODE_BITS_ABS, HALF_STEP_REL
from tests.implementations import OPS, every_implementation, normal, seeds

SIDES = ["nearest", "gptq", "two_sided"]
shapes = st.tuples(st.integers(1, 70), st.integers(1, 70))
few = settings(max_examples=25)


def gram(seed: int, size: int) -> np.ndarray:
    """The mean product of inputs that are correlated and of very different sizes."""
    mixed = np.eye(size) + 0.3 * normal(seed, size, size) / np.sqrt(size) * 3
    inputs = normal(seed + 1, 4 * size, size).astype(np.float64) @ mixed * np.exp(normal(seed + 2, size))
    return np.asarray(inputs.T @ inputs / len(inputs))


def statistics(seed: int, rows: int, columns: int) -> InputStatistics:
    inputs, outputs = gram(seed, columns), gram(seed + 3, rows)
    outputs *= np.trace(inputs) / np.trace(outputs)
    return InputStatistics(100, 100 * inputs, curvature=Curvature(inputs, outputs))


def loss(errors: np.ndarray, found: InputStatistics) -> float:
    """tr(G E H E') / (2 tr G)."""
    assert found.curvature is not None
    inputs, outputs = found.curvature.inputs, found.curvature.outputs
    return float(np.sum((outputs @ errors @ inputs) * errors) / 2 / np.trace(outputs))


@pytest.mark.parametrize("rounding", SIDES)
@few
@given(seed=seeds, shape=shapes)
def test_parts_have_the_planned_form_and_decode_to_code_times_step(rounding: Any, seed: int, shape: tuple[int, int]):
    weights, stored = normal(seed, *shape), Uniform(0.3, rounding)
    parts = stored.encode(weights, statistics(seed, *shape))
    for part in stored.parts(shape):
        assert parts[part.name].dtype == part.dtype and parts[part.name].shape == part.shape
    assert stored.is_valid(parts)
    by_hand = parts["codes"] * parts["steps"].astype(np.float64)
    by_hand *= 2.0 ** (parts["row_exponents"][:, None] / 8.0) * 2.0 ** (parts["column_exponents"] / 8.0)
    np.testing.assert_allclose(stored.decode(shape, parts), by_hand, rtol=HALF_STEP_REL, atol=0)


@few
@given(seed=seeds, shape=shapes, step=st.floats(0.02, 2.0))
def test_rounding_to_nearest_errs_by_half_a_step(seed: int, shape: tuple[int, int], step: float):
    weights, stored = normal(seed, *shape), Uniform(step)
    parts = stored.encode(weights)
    assert np.abs(stored.decode(shape, parts) - weights).max() <= parts["steps"][0] / 2 * (1 + HALF_STEP_REL)


@few
@given(seed=seeds)
def test_every_kind_of_feedback_loses_less_at_no_more_bits(seed: int):
    weights, found = normal(seed, 64, 96), statistics(seed, 64, 96)
    lost, bits = {}, {}
    for rounding in SIDES:
        stored = Uniform(0.3, rounding)  # type: ignore[arg-type]
        parts = stored.encode(weights, found)
        lost[rounding] = loss(stored.decode(weights.shape, parts).astype(np.float64) - weights, found)
        bits[rounding] = entropy_bits(parts["codes"])
    # A bit more divides a loss by four. Rows and columns of other sizes have other codes, which order 0 cannot tell.
    assert lost["gptq"] < lost["nearest"] * 4 ** -(bits["gptq"] - bits["nearest"])
    assert lost["two_sided"] < lost["gptq"] * 4 ** -(bits["two_sided"] - bits["gptq"])


def test_feedback_follows_its_definition():
    """Weight by weight in the order of the visits, without blocks."""
    weights, found = normal(7, 40, 37).astype(np.float64), statistics(7, 40, 37)
    assert found.curvature is not None
    columns, rows = factors_of(found.curvature.inputs), factors_of(found.curvature.outputs)
    steps = np.exp(normal(8, 40, 37).astype(np.float64) / 4) * 0.3
    codes, errors = np.zeros((40, 37)), np.zeros((40, 37))
    for i, row in enumerate(rows.order):
        for j, column in enumerate(columns.order):
            carried = rows.triangle[: i + 1, i] @ errors[: i + 1, : j + 1] @ columns.triangle[: j + 1, j]
            step = steps[row, column]
            codes[row, column] = np.rint((weights[row, column] - carried) / step)
            errors[i, j] = codes[row, column] * step - weights[row, column]
    np.testing.assert_array_equal(two_sided(weights, steps, columns, rows, 127), codes)


def test_the_loss_unit_bounds_the_loss_of_any_tensor():
    for seed, size in ((1, 0.01), (2, 1.0), (3, 50.0)):
        weights, found = size * normal(seed, 60, 80), statistics(seed, 60, 80)
        # Fine enough for noise of uniform distribution, coarse enough for codes of 8 bits.
        scale = np.sqrt(np.trace(found.curvature.inputs))  # type: ignore[union-attr]
        stored = Uniform(40 * size * scale, "two_sided", "loss")
        parts = stored.encode(weights, found)
        predicted = stored.step**2 * 1e-6 * weights.size / 24
        # What was added to both diagonals makes it an upper bound.
        assert 0 < loss(stored.decode(weights.shape, parts).astype(np.float64) - weights, found) < 1.1 * predicted


def test_the_loss_unit_is_what_a_weight_costs_where_none_feeds_another():
    """Errors of uniform distribution, less what damping takes from the weights that the loss hardly feels."""
    inputs, outputs = np.exp(normal(1, 80).astype(np.float64)), np.exp(normal(2, 60).astype(np.float64))
    outputs *= inputs.sum() / outputs.sum()
    found = InputStatistics(1, np.diag(inputs), curvature=Curvature(np.diag(inputs), np.diag(outputs)))
    stored, weights = Uniform(200.0, "two_sided", "loss"), normal(3, 60, 80)
    errors = stored.decode(weights.shape, stored.encode(weights, found)).astype(np.float64) - weights
    felt = [side / (side + DAMP_FRAC * side.mean()) for side in (outputs, inputs)]
    predicted = stored.step**2 * 1e-6 * weights.size / 24 * np.outer(*felt).mean()
    assert loss(errors, found) == pytest.approx(predicted, rel=0.03)


def test_weights_far_beyond_the_step_have_codes_still():
    weights, found = normal(5, 30, 40), statistics(5, 30, 40)
    weights[3, 4] = 900.0
    for rounding in SIDES:
        stored = Uniform(0.1, rounding)  # type: ignore[arg-type]
        parts = stored.encode(weights, found)
        assert stored.is_valid(parts)
        assert abs(stored.decode(weights.shape, parts)[3, 4] / 900.0 - 1) < 0.2


def test_zeros_and_what_has_no_statistics():
    zeros = np.zeros((4, 5), np.float32)
    for rounding in SIDES:
        stored = Uniform(0.3, rounding)  # type: ignore[arg-type]
        assert not stored.decode((4, 5), stored.encode(zeros, statistics(1, 4, 5))).any()
        same = stored.encode(normal(1, 4, 5), InputStatistics())
        np.testing.assert_array_equal(same["codes"], Uniform(0.3).encode(normal(1, 4, 5))["codes"])
    with pytest.raises(ArtifactError, match="needs the curvature"):
        Uniform(0.3, "two_sided", "loss").encode(normal(1, 4, 5), InputStatistics())


def test_bad_parts_are_found():
    stored, good = Uniform(0.3), dict(Uniform(0.3).encode(normal(1, 4, 5)))
    for name, value in (("steps", np.nan), ("steps", -1.0), ("steps", np.inf), ("codes", -128)):
        assert not stored.is_valid(good | {name: np.full_like(good[name], value)})
    big = {name: np.full_like(good[name], 127) for name in ("row_exponents", "column_exponents")}
    assert not stored.is_valid(good | big | {"steps": np.float32([1e30])})


@every_implementation
@settings(max_examples=40)
@given(seed=seeds, shape=shapes, step=st.sampled_from([0.1, 0.3, 0.6]))
def test_training_rounds_as_the_artifact_does(name: str, seed: int, shape: tuple[int, int], step: float):
    ops, stored, weights = OPS[name], Uniform(step), normal(seed, *shape)
    parts, values = stored.encode(weights), OPS[name].asarray(weights)
    rounded = weights + ops.to_numpy(stored.rounding_error(ops, values))
    np.testing.assert_array_equal(rounded.astype(np.float32), stored.decode(shape, parts))
    in_steps = ops.to_numpy(stored.in_steps(ops, values))
    np.testing.assert_array_equal(np.rint(in_steps.astype(np.float32)), parts["codes"])


@pytest.mark.parametrize("step", [0.1, 0.3, 0.6])
def test_predicted_bits_are_those_of_gaussian_codes(step: float):
    codes = Uniform(step).encode(normal(3, 1000, 1000))["codes"]
    assert abs(Uniform(step).gaussian_code_bits(1000) - entropy_bits(codes)) < 2 * GAUSSIAN_CODE_BITS_ABS
