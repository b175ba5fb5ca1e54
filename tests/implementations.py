"""The three implementations of the operations, and how tests compare them with a definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from cuda_train.ops import make_ops as make_torch_ops
from mlx_train.ops import make_ops as make_mlx_ops
from shared.model import Forward
from shared.ops import NumpyOps, Ops
from shared.spec import Spec
from shared.tolerances import OPERATION_REL, ORACLE_OPERATION_REL

OPS: dict[str, Ops] = {"numpy": NumpyOps(), "mlx": make_mlx_ops(), "torch": make_torch_ops()}
ENGINES = ["mlx", "torch"]

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=25)
every_implementation = pytest.mark.parametrize("name", list(OPS))


def normal(seed: int, *shape: int) -> np.ndarray:
    """float32 normal values, so that all implementations start from the same numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def run(name: str, operation: Callable[[Ops], Any]) -> np.ndarray:
    return OPS[name].to_numpy(operation(OPS[name]))


def assert_close(name: str, actual: np.ndarray, expected: Any, rel: float = OPERATION_REL) -> None:
    expected = np.asarray(expected, np.float64)
    limit = ORACLE_OPERATION_REL if name == "numpy" else rel
    assert actual.shape == expected.shape
    assert actual.dtype == (np.float64 if name == "numpy" else np.float32)
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    worst = float(np.abs(actual - expected).max(initial=0.0)) / scale
    assert worst <= limit, f"{name}: {worst:.2e} over {limit:.0e}"


def gradients_of(name: str, scalar: Callable[..., Any], values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Gradients of a scalar function with respect to each argument, by an engine's framework."""
    import mlx.core as mx  # after mlx_train, which loads the BLAS
    import torch

    ops, arrays = OPS[name], [OPS[name].asarray(value) for value in values]
    if name == "mlx":
        grads = mx.grad(lambda arrays: scalar(*arrays))(arrays)
    else:
        leaves = [array.requires_grad_(True) for array in arrays]
        grads = torch.autograd.grad(scalar(*leaves), leaves)
    return [ops.to_numpy(grad) for grad in grads]


def assert_one_graph(name: str, function: Forward, spec: Spec, weights: dict[str, np.ndarray], *xs: np.ndarray) -> None:
    """function(ops, spec, params, x) compiles into a single graph of an engine, which computes for each x what the
    oracle does."""
    import mlx.core as mx  # after mlx_train, which loads the BLAS
    import torch

    ops, oracle = OPS[name], OPS["numpy"]

    def of_engine(params: Any, x: Any) -> Any:
        return function(ops, spec, params, x)

    torch._dynamo.reset()  # It counts the graphs of all specs together.
    compiled = mx.compile(of_engine) if name == "mlx" else torch.compile(of_engine, backend="eager", fullgraph=True)
    for x in xs:
        found = ops.to_numpy(compiled({key: ops.asarray(value) for key, value in weights.items()}, ops.asarray(x)))
        expected = function(oracle, spec, {key: oracle.asarray(value) for key, value in weights.items()}, x)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
