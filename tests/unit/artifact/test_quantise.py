"""Quantisation: exact small cases, bounds, round trips over shapes and magnitudes, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.artifact.budget import entropy_bits
from shared.artifact.codec import compress_blocks
from shared.artifact.layout import from_byte_planes, to_byte_planes
from shared.artifact.quantise import RAW_BITS, QuantisedTensor, code_limit, dequantise, quantise
from shared.errors import ArtifactError
from shared.spec import ArtifactSpec
from shared.tolerances import BROTLI_OVER_ENTROPY_FRAC, HALF_STEP_REL

# The largest weight that an int6 float16 scale can hold is 31 * 65504.
WEIGHTS = st.floats(-2e6, 2e6, width=32, allow_subnormal=True)
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=WEIGHTS)


def _one(weights: np.ndarray, bits: int = 6) -> QuantisedTensor:
    spec = ArtifactSpec.model_validate({"matrix_bits": bits})
    return quantise({"w": weights}, {"w": "matrix"}, spec)["w"]


def _assert_within_half_step(weights: np.ndarray, tensor: QuantisedTensor) -> None:
    unpacked = dequantise({"w": tensor})["w"]
    assert unpacked.dtype == np.float32 and unpacked.shape == weights.shape
    rows = weights.reshape(-1, weights.shape[-1]).astype(np.float64)
    error = np.abs(rows - unpacked.reshape(rows.shape).astype(np.float64))
    half_step = tensor.scales.astype(np.float64)[:, None] / 2
    assert (error <= half_step * (1 + HALF_STEP_REL)).all(), (error - half_step).max()


def test_codes_and_scales_of_a_row_worked_by_hand():
    tensor = _one(np.array([[31.0, -31.0, 15.5, 16.5, 0.4], [0, 0, 0, 0, 0]], np.float32))
    assert tensor.scales.tolist() == [1.0, 0.0]
    assert tensor.data.tolist() == [[31, -31, 16, 16, 0], [0, 0, 0, 0, 0]]  # halves go to even
    assert dequantise({"w": tensor})["w"].tolist() == [[31, -31, 16, 16, 0], [0, 0, 0, 0, 0]]
    assert _one(np.array([[-127.0, 64.0]], np.float32), bits=8).data.tolist() == [[-127, 64]]


def test_codes_are_made_with_the_float16_scale_that_is_stored():
    weights = np.array([[1.0, 0.3, -0.77]], np.float32)
    tensor = _one(weights)
    scale = np.float16(np.float32(1.0) / np.float32(31))
    assert tensor.scales.tolist() == [scale]
    assert tensor.data.tolist() == np.rint(weights / np.float32(scale)).astype(np.int8).tolist()


@given(weights=MATRICES, bits=st.sampled_from([6, 8]))
@settings(max_examples=150, deadline=None)
def test_error_is_at_most_half_a_step(weights: np.ndarray, bits: int):
    tensor = _one(weights, bits)
    assert np.abs(tensor.data.astype(int)).max(initial=0) <= code_limit(bits)
    _assert_within_half_step(weights, tensor)


@given(exponent=st.integers(-149, 20), bits=st.sampled_from([6, 8]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_bound_holds_at_every_magnitude_down_to_denormals(exponent: int, bits: int, seed: int):
    rng = np.random.default_rng(seed)
    weights = np.ldexp(rng.uniform(-1, 1, (4, 13)).astype(np.float32), exponent)
    weights[2] = 0
    _assert_within_half_step(weights, _one(weights, bits))


@given(weights=MATRICES)
@settings(max_examples=50, deadline=None)
def test_quantising_is_repeatable_and_ignores_memory_order(weights: np.ndarray):
    first, second = _one(weights), _one(np.asfortranarray(weights.copy()))
    assert first.data.tobytes() == second.data.tobytes()
    assert first.scales.tobytes() == second.scales.tobytes()


def test_classes_choose_the_bits_and_vectors_stay_float32():
    spec = ArtifactSpec.model_validate({"matrix_bits": 6, "embed_bits": 8, "head_bits": 6})
    matrix, vector = np.ones((2, 3), np.float32), np.float32([1e-42, -0.0, 3.1])
    tensors = quantise(
        {"m": matrix, "e": matrix, "h": matrix, "c": matrix, "v": vector},
        {"m": "matrix", "e": "embedding", "h": "head", "c": "control", "v": "matrix"},
        spec,
    )
    assert {name: tensor.bits for name, tensor in tensors.items()} == {"m": 6, "e": 8, "h": 6, "c": RAW_BITS, "v": 32}
    assert dequantise(tensors)["v"].tobytes() == vector.tobytes()


@pytest.mark.parametrize("kind", ["matrix", "control"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(kind: str, value: float):
    weights = np.zeros((3, 4), np.float32)
    weights[1, 2] = value
    with pytest.raises(ArtifactError, match=r"tensor layers\.0\.w: 1 of 12 weights are not finite"):
        quantise({"layers.0.w": weights}, {"layers.0.w": kind}, ArtifactSpec())


def test_a_weight_beyond_float16_scales_and_another_dtype_are_refused():
    with pytest.raises(ArtifactError, match=r"tensor w: weight 1e\+30 is too large for int6"):
        _one(np.array([[1e30, 1]], np.float32))
    with pytest.raises(ArtifactError, match="tensor w: dtype float64, must be float32"):
        _one(np.zeros((2, 2)))


def test_classes_must_cover_exactly_the_tensors():
    weights = np.zeros((2, 2), np.float32)
    with pytest.raises(AssertionError, match="cover"):
        quantise({"a": weights, "b": weights}, {"a": "matrix"}, ArtifactSpec())
    with pytest.raises(AssertionError, match="cover"):
        quantise({"a": weights}, {"a": "matrix", "b": "matrix"}, ArtifactSpec())


@given(raw=st.binary(max_size=64), item_bytes=st.sampled_from([1, 2, 4]))
def test_byte_planes_round_trip(raw: bytes, item_bytes: int):
    raw = raw[: len(raw) // item_bytes * item_bytes]
    assert from_byte_planes(to_byte_planes(raw, item_bytes), item_bytes) == raw


def test_byte_planes_put_equal_bytes_together():
    assert to_byte_planes(b"aAaBaC", 2) == b"aaaABC"
    assert to_byte_planes(b"1234abcd", 4) == b"1a2b3c4d"


def test_gaussian_int6_codes_cost_what_their_entropy_says():
    weights = np.random.default_rng(0).standard_normal((256, 1536)).astype(np.float32)
    tensor = _one(weights)
    entropy = entropy_bits(tensor.data)
    stored = 8 * sum(map(len, compress_blocks(tensor.data.tobytes(), quality=11, window=24))) / tensor.data.size
    assert 5.1 < entropy < 5.25  # docs/techniques.md 11.3: about 5.2 bits per weight
    assert entropy < stored < entropy * (1 + BROTLI_OVER_ENTROPY_FRAC)
