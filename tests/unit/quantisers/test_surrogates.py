"""Every method that training can read: what each implementation reads is what the artifact stores, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.quantisers import InputStatistics, LowRank, Quantiser, RowMax, SdClip, Ternary
from tests.implementations import OPS, every_implementation, normal, seeds

METHODS = [RowMax(5), SdClip(6), SdClip(4, clip_sd=3.0), SdClip(8, clip_sd=20.0), Ternary(), Ternary(group=3)]
every_method = pytest.mark.parametrize("coded", METHODS, ids=str)


def rows_of_all_sizes(seed: int, rows: int, columns: int) -> np.ndarray:
    """From 1e-8 to 1e3, with zeros, equal weights and outliers among them."""
    rng = np.random.default_rng(seed)
    weights = (normal(seed, rows, columns) * 10.0 ** rng.uniform(-8.0, 3.0, (rows, 1))).astype(np.float32)
    weights[::7] = 0.0
    weights[3::7] = weights[3::7, :1]
    weights[5::7, -1] *= 30
    return weights


def assert_training_sees_the_artifact(name: str, weights: np.ndarray, coded: Quantiser, both: Any = None) -> None:
    ops, parts = OPS[name], coded.encode(weights)
    rows = ops.asarray(weights)
    error, steps = both(rows) if both else (coded.rounding_error(ops, rows), coded.in_steps(ops, rows))
    stored = coded.decode(weights.shape, parts)
    if both is None:
        rounded = (weights + ops.to_numpy(error)).astype(np.float32)
        np.testing.assert_array_equal(rounded, stored)
    else:
        # A compiler may fuse a product and a sum, which rounds once less.
        difference = np.abs(weights + ops.to_numpy(error) - stored)
        assert (difference <= 2e-7 * np.abs(weights).max(axis=-1, keepdims=True)).all()
    limit = coded.code_limit
    codes = np.clip(np.rint(ops.to_numpy(steps).astype(np.float32)), -limit, limit)
    np.testing.assert_array_equal(codes, parts["codes"])


@every_implementation
@every_method
@settings(max_examples=30)
@given(seed=seeds, rows=st.integers(1, 30), columns=st.integers(1, 300))
def test_training_rounds_as_the_artifact_does(name: str, coded: Quantiser, seed: int, rows: int, columns: int):
    assert_training_sees_the_artifact(name, rows_of_all_sizes(seed, rows, columns), coded)


@every_implementation
@every_method
def test_long_rows_and_stacks_of_matrices_too(name: str, coded: Quantiser):
    """Of 4,608 weights, as a patch of twelve symbols has, sums in float32 would depend on their order."""
    assert_training_sees_the_artifact(name, rows_of_all_sizes(1, 60, 4608), coded)
    assert_training_sees_the_artifact(name, rows_of_all_sizes(2, 24, 50).reshape(2, 3, 4, 50), coded)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["mlx", "torch"])
@pytest.mark.parametrize("coded", [SdClip(6), Ternary(group=16)], ids=str)
def test_training_rounds_as_the_artifact_does_when_compiled(name: str, coded: Quantiser):
    import mlx.core as mx

    from cuda_train.compiling import compiled as by_torch

    def both(rows: Any) -> Any:
        return coded.rounding_error(OPS[name], rows), coded.in_steps(OPS[name], rows)

    compiled = mx.compile(both) if name == "mlx" else by_torch(both, "a surrogate")
    assert_training_sees_the_artifact(name, rows_of_all_sizes(4, 300, 40), coded, compiled)


@every_method
def test_the_grid_of_a_method_rounds_and_corrects_nothing(coded: Quantiser):
    weights = normal(3, 8, 40)
    statistics = InputStatistics(9, np.cov(normal(1, 40, 90)) + 1.0)
    with_feedback = type(coded)(**{**vars(coded), "rounding": "gptq"})
    assert coded.has_surrogate and with_feedback.has_surrogate and with_feedback.grid == coded == coded.grid
    assert with_feedback.needs_statistics and not coded.needs_statistics
    found, expected = with_feedback.encode(weights, statistics), coded.encode(weights)
    np.testing.assert_array_equal(found["scales"], expected["scales"])
    assert (found["codes"] != expected["codes"]).any() and with_feedback.is_valid(found)
    assert LowRank(with_feedback, 2).grid == coded


@every_method
def test_without_a_gram_the_nearest_code_is_taken_and_the_storage_says_so(coded: Quantiser):
    with_feedback, table = type(coded)(**{**vars(coded), "rounding": "gptq"}), InputStatistics(reads=np.ones(6, int))
    gram = InputStatistics(2, np.eye(5))
    assert with_feedback.settled((6, 5), gram) == with_feedback
    for shape, statistics in [((6, 5), table), ((6, 5), InputStatistics()), ((2, 3, 5), gram), ((6, 5), None)]:
        assert with_feedback.settled(shape, statistics) == coded
        weights = normal(0, *shape)
        np.testing.assert_array_equal(
            with_feedback.encode(weights, statistics)["codes"], coded.encode(weights)["codes"]
        )
