"""Masked attention and running counts of all three implementations against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_train.ops import make_ops as make_torch_ops
from mlx_train.ops import make_ops as make_mlx_ops
from shared.ops import NumpyOps, Ops
from shared.tolerances import DIRECTIONAL_REL, OPERATION_REL, ORACLE_OPERATION_REL

OPS: dict[str, Ops] = {"numpy": NumpyOps(), "mlx": make_mlx_ops(), "torch": make_torch_ops()}
EXACT = NumpyOps()
every_implementation = pytest.mark.parametrize("name", list(OPS))
examples = settings(max_examples=25, derandomize=True, deadline=None, database=None)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def naive_masked_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int, documents: Any) -> np.ndarray:
    """One query at a time over the list of positions it may read."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    out = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        group = h * k.shape[2] // q.shape[2]
        read = [s for s in range(t + 1) if window == 0 or s > t - window]
        read = [s for s in read if documents is None or documents[b, s] == documents[b, t]]
        scores = np.array([q[b, t, h] @ k[b, s, group] / np.sqrt(q.shape[-1]) for s in read])
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ v[b, read, group]
    return out


@every_implementation
@examples
@given(
    time=st.sampled_from([1, 2, 5, 9, 33]),
    window=st.integers(0, 7),
    groups=st.sampled_from([1, 2, 4]),
    several=st.booleans(),
    seed=st.integers(0, 99),
)
def test_masked_attention(name: str, time: int, window: int, groups: int, several: bool, seed: int):
    q, k, v = normal(seed, 2, time, 4, 6), normal(seed + 1, 2, time, groups, 6), normal(seed + 2, 2, time, groups, 6)
    starts = np.random.default_rng(seed).random((2, time)) < 0.3
    documents = np.cumsum(starts, axis=1).astype(np.int32) if several else None
    ops = OPS[name]
    given_documents = None if documents is None else ops.asarray(documents)
    actual = ops.to_numpy(ops.attention(*map(ops.asarray, (q, k, v)), window, given_documents))
    expected = naive_masked_attention(q, k, v, window, documents)
    limit = ORACLE_OPERATION_REL if name == "numpy" else OPERATION_REL
    assert np.abs(actual - expected).max() <= limit * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("name", ["mlx", "torch"])
@pytest.mark.parametrize("time", [128, 256])
def test_long_masked_attention(name: str, time: int):
    """Lengths that MLX's hand-written attention takes without a mask; one that masks nothing changes nothing."""
    q, k, v = normal(1, 1, time, 4, 8), normal(2, 1, time, 2, 8), normal(3, 1, time, 2, 8)
    documents = np.repeat(np.arange(time // 32), 32)[None].astype(np.int32)
    ops = OPS[name]
    arrays = [ops.asarray(array) for array in (q, k, v)]
    for window, given_documents in ((40, None), (0, documents), (40, documents), (time, None), (0, 0 * documents)):
        on_device = None if given_documents is None else ops.asarray(given_documents)
        actual = ops.to_numpy(ops.attention(*arrays, window, on_device))
        exact = EXACT.attention(*map(EXACT.asarray, (q, k, v)), window, given_documents)
        assert np.abs(actual - exact).max() <= OPERATION_REL * np.abs(exact).max()


@every_implementation
@examples
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 20)), value=st.integers(0, 3), seed=st.integers(0, 99))
def test_running_count(name: str, shape: tuple[int, int], value: int, seed: int):
    x = np.random.default_rng(seed).integers(0, 4, shape).astype(np.int32)
    counts = OPS[name].to_numpy(OPS[name].running_count(OPS[name].asarray(x), value))
    assert counts.dtype.kind == "i"
    assert (counts == [[sum(row[: t + 1] == value) for t in range(len(row))] for row in x]).all()


@pytest.mark.parametrize("name", ["mlx", "torch"])
def test_gradients_of_masked_attention_against_central_differences(name: str):
    values = [normal(index, 2, 7, heads, 6) for index, heads in enumerate((4, 2, 2))]
    documents = np.array([[0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, 0]], np.int32)
    weights = normal(9, 2, 7, 4, 6)
    actual = gradients(name, values, documents, weights)
    for index, value in enumerate(values):
        direction, step = np.random.default_rng(index).standard_normal(value.shape), 1e-6
        ends = []
        for sign in (1.0, -1.0):
            moved = [EXACT.asarray(array) for array in values]
            moved[index] = moved[index] + sign * step * direction
            ends.append(float((EXACT.attention(*moved, 3, documents) * weights).sum()))
        products = actual[index] * direction
        assert abs(products.sum() - (ends[0] - ends[1]) / (2 * step)) <= DIRECTIONAL_REL * np.linalg.norm(products)


def gradients(name: str, values: list[np.ndarray], documents: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    ops = OPS[name]

    def scalar(*arrays: Any) -> Any:
        return ops.sum(ops.attention(*arrays, 3, ops.asarray(documents)) * ops.asarray(weights))

    if name == "mlx":
        import mlx.core as mx  # after mlx_train, which loads the BLAS

        _, grads = mx.value_and_grad(lambda arrays: scalar(*arrays))([ops.asarray(value) for value in values])
        return [ops.to_numpy(grad) for grad in grads]
    import torch

    leaves = [ops.asarray(value).requires_grad_(True) for value in values]
    return [ops.to_numpy(grad) for grad in torch.autograd.grad(scalar(*leaves), leaves)]
