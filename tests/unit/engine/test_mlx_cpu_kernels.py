"""The functions that MLX runs on a CPU alone: exponentials, attention, hand-written gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mlx_train import device
from mlx_train.cpu_attention import can_chunk, causal_attention
from mlx_train.cpu_math import exp2, tanh
from mlx_train.cpu_ops import MLXCPUOps
from mlx_train.plain_ops import MLXOps
from shared.ops import NumpyOps
from shared.tolerances import GRADIENT_REL, OPERATION_REL, POLYNOMIAL_REL

import mlx.core as mx  # isort: skip  # after mlx_train, which loads the BLAS

pytestmark = pytest.mark.skipif(device.on_gpu(), reason="MLX runs on a GPU here")

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


plain_and_compiled = pytest.mark.parametrize("transform", [lambda function: function, mx.compile])


def evaluate(function: Callable, x: np.ndarray) -> np.ndarray:
    return np.array(function(mx.array(x)))


@plain_and_compiled
def test_exp2_over_its_whole_range(transform: Callable):
    edges = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 126.0, -126.0, 1e-38, -1e-38, 1e-45], np.float32)
    halves = np.arange(-252, 252, dtype=np.float32) / 2
    beside = np.concatenate([np.nextafter(halves, np.float32(-126)), np.nextafter(halves, np.float32(126))])
    y = np.concatenate([np.linspace(-126, 126, 400_001).astype(np.float32), edges, halves, beside])
    expected = np.exp2(y.astype(np.float64))
    assert np.abs(evaluate(transform(exp2), y) / expected - 1).max() <= POLYNOMIAL_REL
    whole = np.arange(-126, 127, dtype=np.float32)
    assert (evaluate(transform(exp2), whole) == np.exp2(whole)).all()


@plain_and_compiled
def test_exp2_is_exactly_zero_below_its_range(transform: Callable):
    below = np.array([np.nextafter(np.float32(-126), np.float32(-127)), -127, -1e4, -1e30, -3e38, -np.inf], np.float32)
    assert evaluate(transform(exp2), below).tolist() == [0.0] * len(below)


@plain_and_compiled
def test_tanh_over_all_of_float32(transform: Callable):
    sizes = np.logspace(-37, 38, 200_001).astype(np.float32)
    dense = np.linspace(0, 20, 200_001).astype(np.float32)
    u = np.concatenate([sizes, dense, [SMALLEST_NORMAL, 1e-45, 3.4e38, np.inf, 0.0]]).astype(np.float32)
    for values in (u, -u):
        actual, expected = evaluate(transform(tanh), values), np.tanh(values.astype(np.float64))
        assert (np.abs(actual - expected) <= POLYNOMIAL_REL * np.abs(expected) + SMALLEST_NORMAL).all()
        assert np.abs(actual).max() == 1.0


@plain_and_compiled
@pytest.mark.parametrize("function", [exp2, tanh])
def test_what_is_not_a_number_stays_so(transform: Callable, function: Callable):
    actual = evaluate(transform(function), np.array([np.nan, 0.5], np.float32))
    assert np.isnan(actual).tolist() == [True, False]


def reference_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, float]:
    """The oracle's result [B, T, H, C] and the largest score in magnitude."""
    ops = NumpyOps()
    share = q.shape[2] // k.shape[2]
    scores = np.einsum("bthc,bshc->bhts", q.astype(float), np.repeat(k.astype(float), share, axis=2))
    return ops.attention(*map(ops.asarray, (q, k, v))), float(np.abs(scores).max()) / q.shape[-1] ** 0.5


@pytest.mark.parametrize(
    ("time", "heads", "groups"),
    [
        *(
            (time, heads, groups)
            for time in (32, 50, 127, 128, 256)
            for heads, groups in ((1, 1), (4, 4), (6, 2), (4, 1))
        ),
        (512, 6, 2),
        (1024, 2, 1),
    ],
)
def test_attention_against_the_oracle(time: int, heads: int, groups: int):
    assert can_chunk(time)
    q, k, v = normal(1, 2, time, heads, 8), normal(2, 2, time, groups, 8), normal(3, 2, time, groups, 8)
    expected, _ = reference_attention(q, k, v)
    actual = np.array(causal_attention(*map(mx.array, (q, k, v))))
    assert np.abs(actual - expected).max() <= OPERATION_REL * np.abs(expected).max()


@pytest.mark.parametrize("time", [1, 31, 129, 192, 384, 640])
def test_other_lengths_fall_back(time: int):
    assert not can_chunk(time)
    q, k, v = normal(1, 1, time, 4, 8), normal(2, 1, time, 2, 8), normal(3, 1, time, 2, 8)
    expected, _ = reference_attention(q, k, v)
    actual = np.array(MLXCPUOps().attention(*map(mx.array, (q, k, v))))
    assert np.abs(actual - expected).max() <= OPERATION_REL * np.abs(expected).max()


@pytest.mark.parametrize("time", [48, 128, 256, 384, 1024])
@pytest.mark.parametrize("scale", [30.0, 100.0, 1000.0])
def test_attention_with_huge_scores(time: int, scale: float):
    q, k, v = normal(1, 1, time, 4, 16, scale=scale), normal(2, 1, time, 2, 16), normal(3, 1, time, 2, 16)
    expected, largest = reference_attention(q, k, v)
    assert largest > 3 * scale, "such scores overflow exp unless a maximum is subtracted"
    actual = np.array(MLXCPUOps().attention(*map(mx.array, (q, k, v))))
    # A score is rounded in proportion to its size, and the softmax passes that on.
    assert np.abs(actual - expected).max() <= OPERATION_REL * np.abs(expected).max() * largest / 10


@pytest.mark.parametrize("time", [32, 128, 256, 512, 384])
def test_attention_cannot_see_later_keys_and_values(time: int):
    q, k, v = normal(1, 1, time, 4, 8), normal(2, 1, time, 2, 8), normal(3, 1, time, 2, 8)
    before = np.array(MLXCPUOps().attention(*map(mx.array, (q, k, v))))
    for place in (1, time // 2 - 1, time // 2, time // 2 + 1, time - 1):
        later_k, later_v = k.copy(), v.copy()
        later_k[:, place:], later_v[:, place:] = normal(4, time - place, 1, 8), 1e4
        after = np.array(MLXCPUOps().attention(*map(mx.array, (q, later_k, later_v))))
        assert (after[:, :place] == before[:, :place]).all(), f"a position before {place} sees it"
        assert np.abs(after - before)[:, place:].max() > 1.0, "or this test could not fail"


TARGETS = np.random.default_rng(0).integers(0, 260, (3, 7)).astype(np.int32)
MLP = [normal(4, 2, 5, 16), normal(5, 48, 16), normal(6, 16, 48)]


def cross_entropy(cap: float) -> Callable:
    return lambda ops, z: ops.softcapped_cross_entropy(z, mx.array(TARGETS), cap)


def leaky_mlp(slope: float) -> Callable:
    return lambda ops, x, up, down: ops.leaky_relu_squared_mlp(x, up, down, slope)


def attention(ops: MLXOps, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    return ops.attention(q, k, v)


FUNCTIONS: dict[str, tuple[Callable, list[np.ndarray]]] = {
    "cross entropy": (cross_entropy(30.0), [normal(1, 3, 7, 260, scale=5.0)]),
    "cross entropy, saturated": (cross_entropy(15.0), [normal(1, 3, 7, 260, scale=40.0)]),
    "cross entropy, largest unshifted cap": (cross_entropy(60.0), [normal(1, 3, 7, 260, scale=50.0)]),
    "rms_norm": (lambda ops, x: ops.rms_norm(x, 1e-6), [normal(2, 2, 5, 4, 24)]),
    "rms_norm, near eps": (lambda ops, x: ops.rms_norm(x, 1e-6), [normal(2, 2, 5, 24, scale=1e-3)]),
    "rope": (lambda ops, x: ops.rope(x, 1e4), [normal(3, 2, 40, 3, 16)]),
    "leaky relu squared": (leaky_mlp(0.5), MLP),
    "leaky relu squared, no slope": (leaky_mlp(0.0), MLP),
    "attention": (attention, [normal(7, 1, 256, 4, 8, scale=5.0), normal(8, 1, 256, 2, 8), normal(9, 1, 256, 2, 8)]),
    "attention, 1024": (attention, [normal(7, 1, 1024, 2, 8), normal(8, 1, 1024, 1, 8), normal(9, 1, 1024, 1, 8)]),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "transform"),
    [
        *((case, lambda function: function) for case in FUNCTIONS),
        ("cross entropy", mx.compile),
        ("attention", mx.compile),
    ],
)
def test_hand_written_gradients_are_those_of_mlx(case: str, transform: Callable):
    function, values = FUNCTIONS[case]
    arguments = [mx.array(value) for value in values]
    weights = mx.array(normal(11, *function(MLXOps(), *arguments).shape))
    results = []
    for ops in (MLXCPUOps(), MLXOps()):
        differentiate = mx.value_and_grad(lambda arrays, ops=ops: mx.sum(function(ops, *arrays) * weights))
        results.append(transform(differentiate)(arguments))
    (value, grads), (expected_value, expected) = results
    terms = float(mx.sum(mx.abs(function(MLXOps(), *arguments) * weights)).item())
    assert abs(value.item() - expected_value.item()) <= OPERATION_REL * terms
    for grad, other in zip(grads, expected, strict=True):
        assert mx.linalg.norm((grad - other).reshape(-1)).item() <= (
            GRADIENT_REL * mx.linalg.norm(other.reshape(-1)).item()
        )


@pytest.mark.parametrize("case", list(FUNCTIONS))
def test_bfloat16_takes_the_plain_operations_and_keeps_its_type(case: str):
    function, values = FUNCTIONS[case]
    arguments = [mx.array(value).astype(mx.bfloat16) for value in values]
    actual, plain = function(MLXCPUOps(), *arguments), function(MLXOps(), *arguments)
    assert actual.dtype == (mx.float32 if case.startswith("cross entropy") else mx.bfloat16) == plain.dtype
    grads = mx.grad(lambda arrays: mx.sum(function(MLXCPUOps(), *arrays)))(arguments)
    assert all(grad.dtype == mx.bfloat16 and mx.all(mx.isfinite(grad)).item() for grad in grads)
