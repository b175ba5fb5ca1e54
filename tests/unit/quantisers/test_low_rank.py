"""LQER: factors and levels worked by hand, which tensors get a correction, hostile parts."""

from __future__ import annotations

import numpy as np
import pytest

from shared.errors import ArtifactError
from shared.quantisers import LowRank, QuantisedTensor, RowMax, SdClip
from shared.quantisers.low_rank import leading_factors, with_correction, with_corrections
from tests.implementations import normal


def stored(weights: np.ndarray, bits: int = 4) -> QuantisedTensor:
    return QuantisedTensor(RowMax(bits), weights.shape, RowMax(bits).encode(weights))


def decoded(tensor: QuantisedTensor) -> np.ndarray:
    return tensor.storage.decode(tensor.shape, tensor.parts)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (7, 7)])
def test_factors_are_those_of_the_singular_value_decomposition(shape: tuple[int, int]):
    errors = normal(0, *shape).astype(np.float64)
    u, sizes, v = np.linalg.svd(errors, full_matrices=False)
    a, b = leading_factors(errors, 4)
    np.testing.assert_allclose(a @ b, u[:, :4] * sizes[:4] @ v[:4], atol=1e-9)
    np.testing.assert_allclose(b @ b.T, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(a, axis=0), sizes[:4])
    assert (a.min(axis=0) < -a.max(axis=0)).all()  # the largest magnitude has the sign with more levels


def test_levels_and_scales_worked_by_hand():
    """The error is (-3, 1.5)' (1, 0.5, -0.25) and no more: A is -3, 1.5 times a length, B the unit row."""
    row = np.array([1.0, 0.5, -0.25])
    weights, length = np.outer([-3.0, 1.5], row).astype(np.float32), np.linalg.norm(row)
    found = LowRank(RowMax(4), 1).correction(weights, np.zeros((2, 3), np.float32))
    np.testing.assert_allclose(found["lqer_scales"], [3 * length / 1.5, 1 / length / 7.5], rtol=1e-3)
    assert found["lqer_a"].tolist() == [[-2], [1]]  # -1.5 and 0.75 of a step
    assert found["lqer_b"].tolist() == [[7, 4, -2]]  # 7.5, 3.75 and -1.875
    base = {"codes": np.zeros((2, 3), np.int8), "scales": np.ones(2, np.float16)}
    product = np.outer([-2, 1], [7, 4, -2]) * np.prod(found["lqer_scales"].astype(np.float64))
    np.testing.assert_allclose(LowRank(RowMax(4), 1).decode((2, 3), {**base, **found}), product, rtol=1e-6)


@pytest.mark.parametrize("shape", [(40, 130), (130, 40), (9, 64)])
def test_encode_has_the_planned_parts_and_lowers_a_low_rank_error(shape: tuple[int, int]):
    weights, coded = normal(1, *shape), LowRank(SdClip(4, clip_sd=1.0), 4)
    weights[:, 3] *= 9  # clipped: an error in one direction
    parts = coded.encode(weights)
    assert [part.name for part in coded.parts(shape)] == list(parts)
    for part in coded.parts(shape):
        assert parts[part.name].shape == part.shape and parts[part.name].dtype == np.dtype(part.dtype)
    assert coded.is_valid(parts)
    error, plain = (np.linalg.norm(each.decode(shape, each.encode(weights)) - weights) for each in (coded, coded.base))
    assert error < 0.9 * plain


def test_an_error_of_nothing_is_corrected_by_nothing():
    weights = np.array([[7.0, -7.0, 1.0], [0, 0, 0]], np.float32)
    tensor = with_correction(stored(weights), weights, 2)
    assert not tensor.parts["lqer_a"].any() and tensor.storage.is_valid(tensor.parts)
    np.testing.assert_array_equal(decoded(tensor), weights)


def test_the_largest_errors_get_one_and_stacks_do_not():
    weights = {"small": normal(0, 8, 8), "large": 9 * normal(1, 8, 8), "middle": 3 * normal(2, 8, 8)}
    weights |= {"stack": 99 * normal(3, 2, 8, 8), "thin": 99 * normal(4, 8, 3), "unasked": 99 * normal(5, 8, 8)}
    tensors = {name: stored(value) for name, value in weights.items()}
    ranks = dict.fromkeys(["small", "large", "middle", "stack", "thin"], 4)
    corrected = with_corrections(tensors, weights, ranks, 2)
    assert [name for name in corrected if isinstance(corrected[name].storage, LowRank)] == ["large", "middle"]
    for name in ("large", "middle"):
        assert corrected[name].storage == LowRank(RowMax(4), 4)
        np.testing.assert_array_equal(corrected[name].parts["codes"], tensors[name].parts["codes"])
        assert np.linalg.norm(decoded(corrected[name]) - weights[name]) < np.linalg.norm(
            decoded(tensors[name]) - weights[name]
        )
    assert with_corrections(tensors, weights, ranks, 0) == tensors


def test_what_no_weights_have_is_refused():
    coded, parts = LowRank(RowMax(4), 2), LowRank(RowMax(4), 2).encode(normal(0, 5, 9))
    assert coded.is_valid(parts)
    hostile = [("lqer_a", 2), ("lqer_a", -3), ("lqer_b", 8), ("lqer_b", -9), ("lqer_scales", np.inf), ("codes", 8)]
    for name, value in hostile:
        wrong = parts[name].copy()
        wrong.flat[-1] = value
        assert not coded.is_valid({**parts, name: wrong}), (name, value)
    with pytest.raises(ArtifactError, match="its error is too large for a float16 scale"):
        coded.correction(np.full((5, 9), 1e9, np.float32), np.zeros((5, 9), np.float32))
