"""The gradient of a table without atomic additions: the same sums, and nothing else in the graph of any preset."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_train import ops as mlx_ops
from mlx_train import table_gradient
from mlx_train.cpu_ops import MLXCPUOps
from mlx_train.plain_ops import DTYPES, MLXOps
from mlx_train.table_gradient import BLOCK_ROWS, ONE_HOT_ENTRIES, ONE_HOT_ROWS, fits_one_hot, read_rows
from shared.errors import UserError
from shared.model import training_loss, training_parameters
from shared.spec import Spec, load_spec
from shared.spec.load import preset_names
from shared.tolerances import OPERATION_REL
from tests.implementations import examples, seeds

import mlx.core as mx  # isort: skip  # after mlx_train, which loads the BLAS

WAYS = [table_gradient.summed_by_one_hot, table_gradient.summed_by_sorting]
# Runs of equal indices that end before, at and after the end of a block, or span several.
run_lengths = st.one_of(
    st.integers(1, 3), st.integers(-1, 1).map(lambda off: BLOCK_ROWS + off), st.integers(1, 4 * BLOCK_ROWS)
)
every_way = pytest.mark.parametrize("way", WAYS)


def added_up(index: np.ndarray, values: np.ndarray, num_rows: int) -> np.ndarray:
    """The definition: float64 sums of the rows with an equal index."""
    sums = np.zeros((num_rows, values.shape[1]))
    np.add.at(sums, index, values.astype(np.float64))
    return sums


@every_way
@examples
@given(st.lists(run_lengths, min_size=1, max_size=60), seeds)
def test_sums_of_runs_are_exact(way: Callable, runs: list[int], seed: int) -> None:
    """Integers are exact in float32, so one row too many or too few shows, wherever a run ends."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(runs) + 2)[: len(runs)]
    index = rng.permutation(np.repeat(rows, runs)).astype(np.int32)
    values = rng.integers(-50, 50, (len(index), 3)).astype(np.float32)
    found = np.array(way(mx.array(index), mx.array(values), len(runs) + 2))
    assert np.array_equal(found, added_up(index, values, len(runs) + 2))


@every_way
@pytest.mark.parametrize("count", [BLOCK_ROWS**2 - 1, BLOCK_ROWS**2, BLOCK_ROWS**2 + 1, 3 * BLOCK_ROWS**2])
def test_one_index_alone_and_blocks_of_blocks(way: Callable, count: int) -> None:
    values = np.ones((count, 1), np.float32)
    for index in (np.full(count, 3, np.int32), np.arange(count, dtype=np.int32) // BLOCK_ROWS**2 + 1):
        found = np.array(way(mx.array(index), mx.array(values), 5))
        assert np.array_equal(found, added_up(index, values, 5))


@every_way
def test_sums_of_text_are_as_good_as_any_operation(way: Callable) -> None:
    """A few rows are read thousands of times, as the bytes of a text are."""
    rng = np.random.default_rng(0)
    index = np.minimum(rng.zipf(1.3, 8192) - 1, 255).astype(np.int32)
    values = rng.standard_normal((8192, 16)).astype(np.float32)
    expected = added_up(index, values, 256)
    error = np.abs(np.array(way(mx.array(index), mx.array(values), 256)) - expected).max()
    assert error <= OPERATION_REL * np.abs(expected).max()


@pytest.mark.parametrize(
    ("num_rows", "count", "one_hot"),
    [
        (256, 4096, True),
        (ONE_HOT_ROWS, ONE_HOT_ENTRIES // ONE_HOT_ROWS, True),
        (ONE_HOT_ROWS, ONE_HOT_ENTRIES // ONE_HOT_ROWS + 1, False),
        (ONE_HOT_ROWS + 1, 1, False),
    ],
)
def test_which_way_is_taken(num_rows: int, count: int, one_hot: bool) -> None:
    assert fits_one_hot(num_rows, count) is one_hot


@pytest.mark.parametrize("num_rows", [7, ONE_HOT_ROWS + 5])
def test_the_gradient_is_that_of_a_gather(num_rows: int) -> None:
    rng = np.random.default_rng(1)
    index = mx.array(rng.integers(0, num_rows, (2, 9, 5)).astype(np.int32))
    table = mx.array(rng.standard_normal((num_rows, 4)).astype(np.float32))
    weight = mx.array(rng.integers(-9, 9, (2, 9, 5, 4)).astype(np.float32))

    def read(rows: Callable) -> list[np.ndarray]:
        value, grad = mx.value_and_grad(lambda table: (rows(table) * weight).sum())(table)
        return [np.array(value), np.array(grad)]

    gathered = read(lambda table: table[index])
    assert all(map(np.array_equal, read(lambda table: read_rows(table, index)), gathered))
    assert all(map(np.array_equal, read(lambda table: MLXCPUOps().embedding(table, index, "float32")), gathered))


class NoTableGradient(MLXOps):
    """The operations of a GPU with the gradients of all tables left out."""

    def embedding(self, weight: mx.array, index: mx.array, dtype: str) -> mx.array:
        return mx.stop_gradient(super().embedding(weight, index, dtype))


class GatherOps(MLXOps):
    """The operations of a GPU with MLX's own gradient of tables."""

    def embedding(self, weight: mx.array, index: mx.array, dtype: str) -> mx.array:
        return weight[index].astype(DTYPES[dtype])


def added_scatters(ops: MLXOps, spec: Spec, path: Path) -> int:
    """How many scatters that add are in the graph of the gradient of a spec's loss. Nothing is computed."""
    params = {parameter.name: mx.zeros(parameter.shape) for parameter in training_parameters(spec)}
    params["symbol_weights"] = mx.ones((spec.vocabulary.size, 1))
    x = mx.zeros((1, spec.model.seq_len), dtype=mx.int32)

    def loss(params: dict[str, Any]) -> mx.array:
        return training_loss(ops, spec, params, x)[0]

    with path.open("w") as file:
        mx.export_to_dot(file, *mx.grad(loss)(params).values())
    return len(re.findall('label ?= ?"Scatter Sum"', path.read_text()))


@pytest.mark.parametrize("preset", preset_names())
def test_on_a_gpu_no_table_adds_its_gradient_by_scatter(preset: str, tmp_path: Path) -> None:
    """What is left picks one row of a small parameter by a number, and touches each value once."""
    spec = load_spec(preset)
    on_gpu, without, by_gather = (
        added_scatters(ops, spec, tmp_path / "graph.dot") for ops in (MLXOps(), NoTableGradient(), GatherOps())
    )
    assert on_gpu == without < by_gather


def test_a_cpu_takes_the_operations_of_a_gpu_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx_ops.device, "on_gpu", lambda: False)
    for wanted, expected in (("1", MLXOps), ("0", MLXCPUOps), (None, MLXCPUOps)):
        monkeypatch.delenv("BYTETWIN_MLX_PLAIN", raising=False)
        if wanted is not None:
            monkeypatch.setenv("BYTETWIN_MLX_PLAIN", wanted)
        assert type(mlx_ops.make_ops()) is expected
    monkeypatch.setenv("BYTETWIN_MLX_PLAIN", "yes")
    with pytest.raises(UserError, match=r"BYTETWIN_MLX_PLAIN = 'yes': must be 1 .* or 0"):
        mlx_ops.make_ops()
