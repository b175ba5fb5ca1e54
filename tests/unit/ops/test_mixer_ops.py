"""The operations that scans need, of all three implementations, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.tolerances import DIRECTIONAL_REL
from tests.implementations import OPS, assert_close, every_implementation, examples, normal, run, seeds, sizes

GRADIENT_STEP = 1e-6


@every_implementation
@examples
@given(shape=st.lists(sizes, min_size=1, max_size=3), scale=st.sampled_from([0.1, 1.0, 5.0]), seed=seeds)
def test_exp_and_softplus(name: str, shape: list[int], scale: float, seed: int):
    x = normal(seed, *shape) * np.float32(scale)
    exponentials = np.array([math.exp(value) for value in x.ravel()]).reshape(shape)
    assert_close(name, run(name, lambda ops: ops.exp(ops.asarray(x))), exponentials)
    logarithms = np.array([math.log1p(math.exp(value)) for value in x.ravel()]).reshape(shape)
    assert_close(name, run(name, lambda ops: ops.softplus(ops.asarray(x))), logarithms)


@every_implementation
def test_softplus_overflows_for_no_number(name: str):
    x = np.array([-1e4, -100.0, 0.0, 100.0, 1e4], np.float32)
    actual = run(name, lambda ops: ops.softplus(ops.asarray(x)))
    assert actual[:3] == pytest.approx([0.0, 0.0, math.log(2.0)], abs=1e-7)
    assert actual[3:].tolist() == [100.0, 1e4]


@every_implementation
@examples
@given(shape=st.lists(sizes, min_size=1, max_size=4), seed=seeds, data=st.data())
def test_running_sum(name: str, shape: list[int], seed: int, data: st.DataObject):
    x = normal(seed, *shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    moved = np.moveaxis(x.astype(float), axis, 0)
    expected = np.moveaxis(np.array([sum(moved[: last + 1]) for last in range(len(moved))]), 0, axis)
    assert_close(name, run(name, lambda ops: ops.running_sum(ops.asarray(x), axis)), expected)


@every_implementation
@examples
@given(shape=st.lists(sizes, min_size=2, max_size=4), diagonal=st.integers(-3, 3), seed=seeds)
def test_lower_triangle(name: str, shape: list[int], diagonal: int, seed: int):
    x = normal(seed, *shape)
    expected = x.copy()
    for row in range(shape[-2]):
        expected[..., row, max(0, row + diagonal + 1) :] = 0.0
    assert (run(name, lambda ops: ops.lower_triangle(ops.asarray(x), diagonal)) == expected).all()


def test_gradients_of_the_two_engines():
    """d/dx of sum(w * softplus(running_sum(lower_triangle(exp(x))))) against central differences of the oracle."""
    import mlx.core as mx

    x, weights = normal(1, 3, 5, 5), normal(2, 3, 5, 5)

    def value(name: str, array: object) -> object:
        ops = OPS[name]
        inner = ops.running_sum(ops.lower_triangle(ops.exp(array), -1), axis=-2)
        return ops.sum(ops.asarray(weights) * ops.softplus(inner))

    direction = normal(3, *x.shape).astype(float)
    ends = [value("numpy", x.astype(float) + sign * GRADIENT_STEP * direction) for sign in (1.0, -1.0)]
    expected = (ends[0] - ends[1]) / (2.0 * GRADIENT_STEP)
    leaf = OPS["torch"].asarray(x).requires_grad_()
    value("torch", leaf).backward()
    gradients = {"mlx": mx.grad(lambda array: value("mlx", array))(mx.array(x)), "torch": leaf.grad}
    for name, gradient in gradients.items():
        products = OPS[name].to_numpy(gradient) * direction
        assert abs(products.sum() - expected) <= DIRECTIONAL_REL * np.linalg.norm(products), name
