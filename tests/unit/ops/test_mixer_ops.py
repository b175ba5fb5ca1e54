"""The operations that scans need, of all three implementations, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.implementations import OPS, assert_close, every_implementation, examples, normal, run, seeds, sizes


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


@every_implementation
@examples
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 20)), value=st.integers(0, 3), seed=st.integers(0, 99))
def test_running_count(name: str, shape: tuple[int, int], value: int, seed: int):
    x = np.random.default_rng(seed).integers(0, 4, shape).astype(np.int32)
    counts = OPS[name].to_numpy(OPS[name].running_count(OPS[name].asarray(x), value))
    assert counts.dtype.kind == "i"
    assert (counts == [[sum(row[: t + 1] == value) for t in range(len(row))] for row in x]).all()
