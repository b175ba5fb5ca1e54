"""Gradients of every operation against differences of the oracle, and operations in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shared.ops import Ops
from shared.tolerances import BF16_OPERATION_REL, DIRECTIONAL_REL
from tests.implementations import ENGINES, OPS, gradients_of, normal

DIFFERENCE_STEP = 1e-6
DOCUMENTS = np.array([[0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, 0]], np.int32)

DIFFERENTIABLE: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "linear": (lambda ops, x, w: ops.linear(x, w), [(2, 5, 6), (7, 6)]),
    "embedding": (lambda ops, w: ops.embedding(w, ops.asarray(np.array([[0, 3, 3], [2, 0, 0]])), "float32"), [(5, 6)]),
    "rms_norm": (lambda ops, x: ops.rms_norm(x, 1e-6), [(2, 3, 4, 6)]),
    "rms_norm, large eps": (lambda ops, x: ops.rms_norm(x, 0.5), [(2, 6)]),
    "rope": (lambda ops, x: ops.rope(x, 100.0), [(2, 5, 3, 6)]),
    "attention": (lambda ops, q, k, v: ops.attention(q, k, v), [(2, 5, 4, 6), (2, 5, 2, 6), (2, 5, 2, 6)]),
    "attention, 48": (lambda ops, q, k, v: ops.attention(q, k, v), [(1, 48, 4, 6), (1, 48, 2, 6), (1, 48, 2, 6)]),
    "attention, 256": (lambda ops, q, k, v: ops.attention(q, k, v), [(1, 256, 2, 4), (1, 256, 1, 4), (1, 256, 1, 4)]),
    "attention, masked": (
        lambda ops, q, k, v: ops.attention(q, k, v, 3, ops.asarray(DOCUMENTS)),
        [(2, 7, 4, 6), (2, 7, 2, 6), (2, 7, 2, 6)],
    ),
    "mlp": (lambda ops, x, u, d: ops.leaky_relu_squared_mlp(x, u, d, 0.5), [(2, 3, 6), (9, 6), (6, 9)]),
    "mlp, slope 0": (lambda ops, x, u, d: ops.leaky_relu_squared_mlp(x, u, d, 0.0), [(4, 6), (9, 6), (6, 9)]),
    "cross entropy": (
        lambda ops, z: ops.softcapped_cross_entropy(5 * z, ops.asarray(np.array([[0, 3], [8, 3]])), 5.0),
        [(2, 2, 9)],
    ),
    "cross entropy, large cap": (
        lambda ops, z: ops.softcapped_cross_entropy(5 * z, ops.asarray(np.array([4, 0])), 100.0),
        [(2, 9)],
    ),
    "log softmax": (lambda ops, z: ops.softcapped_log_softmax(5 * z, 5.0), [(2, 2, 9)]),
    "concatenate": (lambda ops, a, b: ops.concatenate([a, b], -1), [(2, 3), (2, 4)]),
    "stack": (lambda ops, a, b: ops.stack([a, b]), [(2, 3), (2, 3)]),
    "broadcast_to": (lambda ops, a: ops.broadcast_to(a, (4, 2, 3)), [(1, 2, 3)]),
    "transpose": (lambda ops, a: ops.transpose(a), [(2, 3, 4)]),
    "sum": (lambda ops, a: ops.sum(a, axes=(0, -1)), [(2, 3, 4)]),
    "sum of all": (lambda ops, a: ops.sum(a), [(2, 3, 4)]),
    "sqrt": (lambda ops, a: ops.sqrt(a * a), [(2, 3)]),
    "relu": (lambda ops, a: ops.relu(a), [(4, 5)]),
    "minimum": (lambda ops, a: ops.minimum(a, 0.3), [(4, 5)]),
    "symbol_context": (
        lambda ops, e, f, p: ops.symbol_context(
            e, ops.broadcast_to(f, (2, 1, 4)), p, ops.asarray(DOCUMENTS), "float32"
        ),
        [(5, 4), (4,), (4, 12)],
    ),
    "exp": (lambda ops, a: ops.exp(a), [(4, 5)]),
    "softplus": (lambda ops, a: ops.softplus(a), [(4, 5)]),
    "running_sum": (lambda ops, a: ops.running_sum(a, axis=-2), [(3, 5, 4)]),
    "lower_triangle": (lambda ops, a: ops.lower_triangle(a, -1), [(3, 5, 5)]),
}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("case", list(DIFFERENTIABLE))
def test_gradients_against_central_differences_of_the_oracle(name: str, case: str):
    operation, shapes = DIFFERENTIABLE[case]
    values = [normal(index, *shape) for index, shape in enumerate(shapes)]
    exact = OPS["numpy"]
    weights = normal(77, *np.shape(operation(exact, *map(exact.asarray, values))))

    def scalar_on(ops: Ops) -> Callable[..., Any]:
        return lambda *arrays: ops.sum(operation(ops, *arrays) * ops.asarray(weights))

    gradients = gradients_of(name, scalar_on(OPS[name]), values)
    for index, value in enumerate(values):
        assert gradients[index].shape == value.shape
        for seed in range(3):
            direction = np.random.default_rng([seed, index]).standard_normal(value.shape)
            ends = []
            for sign in (1.0, -1.0):
                moved = [exact.asarray(array) for array in values]
                moved[index] = moved[index] + sign * DIFFERENCE_STEP * direction
                ends.append(float(scalar_on(exact)(*moved)))
            measured = (ends[0] - ends[1]) / (2 * DIFFERENCE_STEP)
            products = gradients[index].astype(float) * direction
            spread = math.sqrt(float((products**2).sum()))
            assert abs(products.sum() - measured) <= DIRECTIONAL_REL * max(spread, 1e-3), f"argument {index}"


@pytest.mark.parametrize("name", ENGINES)
def test_bfloat16_operations_stay_near_their_definition(name: str):
    ops, exact = OPS[name], OPS["numpy"]

    def both(operation: Callable[..., Any], *arrays: np.ndarray) -> None:
        narrow = ops.to_numpy(operation(ops, *(ops.cast(ops.asarray(array), "bfloat16") for array in arrays)))
        wide = operation(exact, *(exact.asarray(array) for array in arrays))
        assert np.linalg.norm(narrow - wide) <= BF16_OPERATION_REL * np.linalg.norm(wide)

    x, weight = normal(1, 2, 6, 32), normal(2, 24, 32) / np.float32(32**0.5)
    both(lambda ops, x, w: ops.linear(x, w), x, weight)
    both(lambda ops, x: ops.rms_norm(x, 1e-6), x)
    both(lambda ops, x: ops.rope(x, 1e4), x.reshape(2, 6, 4, 8))
    both(lambda ops, x: ops.softcapped_log_softmax(x, 30.0), x)
    heads = x.reshape(2, 6, 4, 8)
    both(lambda ops, q, k, v: ops.attention(q, k, v), heads, heads[:, :, :2] * 0.7, heads[:, :, 2:])
    both(lambda ops, x, u, d: ops.leaky_relu_squared_mlp(x, u, d, 0.5), x, weight, weight.T.copy())
