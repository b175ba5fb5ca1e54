"""A relu input within rounding of zero: parity passes whichever side the engines take, and finds bugs all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import cuda_train.plain_ops
import mlx_train.ops
from shared.engine.protocol import Engine
from shared.engine.registry import ENGINES
from shared.engine.synthetic import comparison_weights, synthetic_engine, synthetic_loader
from shared.model import forward
from shared.ops import NumpyOps
from shared.parity import ParityRow
from shared.parity.gradient_checks import Tensors, directional_rows, gradient_rows
from shared.parity.held_kinks import HeldKinks, relu_inputs
from shared.parity.training_checks import hold_nothing, short_run, training_rows
from shared.spec import load_spec
from shared.spec.reduced import reduced_spec
from shared.tolerances import GRADIENT_REL, KINK_REL, KINK_TRAINING_REL

MLXOps, TorchOps = type(mlx_train.ops.make_ops()), cuda_train.plain_ops.TorchOps
STEPS = 3
SPEC = reduced_spec(load_spec("tiny", ["model.decoder.kind=mlp"]), STEPS)[0]
UP = "decoder.heads.0.up_proj.weight"
# Row of the batch, patch and unit of the first head whose input is placed at zero.
ROW, PATCH, UNIT = 1, 5, 3
# What another order of summation does to an input, relative to the root mean square at its position.
ROUNDING = KINK_REL / 5


class Reading(NumpyOps):
    """The oracle, keeping what the product before each relu reads."""

    def __init__(self) -> None:
        self.read: list[np.ndarray] = []

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        self.last = x
        return super().linear(x, weight)

    def relu(self, x: np.ndarray) -> np.ndarray:
        self.read.append(self.last)
        return super().relu(x)


@pytest.fixture(scope="module")
def batches() -> list[np.ndarray]:
    loader = synthetic_loader(SPEC, 2)
    return [loader.batch(step) for step in range(STEPS)]


@pytest.fixture(scope="module")
def weights(batches: list[np.ndarray]) -> Tensors:
    """Weights with which one relu input is as near to zero as float32 allows."""
    found, ops = comparison_weights(SPEC, 1), Reading()
    forward(ops, SPEC, {name: ops.asarray(value) for name, value in found.items()}, batches[0])
    z, row = ops.read[0][ROW, PATCH], np.float64(found[UP][UNIT])
    found[UP] = found[UP].copy()
    found[UP][UNIT] = row - (row @ z) / (z @ z) * z
    return found


@pytest.fixture
def either_side(monkeypatch: pytest.MonkeyPatch, weights: Tensors, batches: list[np.ndarray]) -> None:
    """Two machines of which one rounds the inputs of relu up and the other down."""
    shift = ROUNDING * float(np.sqrt(np.mean(relu_inputs(SPEC, weights, batches[0])[0][ROW, PATCH] ** 2)))
    for ops, amount in ((MLXOps, shift), (TorchOps, -shift)):
        right = ops.relu
        monkeypatch.setattr(ops, "relu", lambda self, x, right=right, amount=amount: right(self, x + amount))


def plain_engines() -> dict[str, Engine]:
    return {name: synthetic_engine(name, SPEC) for name in ENGINES}


def gradients(engines: Mapping[str, Engine], weights: Tensors, x: np.ndarray) -> dict[str, Tensors]:
    found = {}
    for name, engine in engines.items():
        engine.initialise(weights)
        found[name] = engine.gradients(x)[1]
    return found


def held_rows(weights: Tensors, x: np.ndarray, of_torch: Tensors | None = None) -> list[ParityRow]:
    """Rows of gradients with kinks held; torch may start from other weights."""
    kinks = HeldKinks(SPEC, KINK_REL)
    engines = kinks.engines(plain_engines())
    found = gradients({"mlx": engines["mlx"]}, weights, x)
    found |= gradients({"torch": engines["torch"]}, weights if of_torch is None else of_torch, x)
    return [
        *gradient_rows(SPEC, found, kinks=kinks),
        *directional_rows(SPEC, weights, x, {name: found[name] for name in found}, seed=3),
    ]


def failed(rows: list[ParityRow]) -> dict[tuple[str, str], ParityRow]:
    return {(row.check, row.pair): row for row in rows if not row.passed}


@pytest.mark.usefixtures("either_side")
def test_the_side_of_an_undecided_input_does_not_matter(weights: Tensors, batches: list[np.ndarray]):
    (plain,) = gradient_rows(SPEC, gradients(plain_engines(), weights, batches[0]))
    assert plain.worst == UP and plain.measured > 10 * GRADIENT_REL
    rows = held_rows(weights, batches[0])
    assert failed(rows) == {}
    sides = [row for row in rows if row.check == "relu sides, gradients"]
    assert [row.pair for row in sides] == ["numpy - mlx", "numpy - torch"]
    assert all(row.worst.startswith("1 of ") and "undecided, within 5e-05 of zero" in row.worst for row in sides)


@pytest.mark.usefixtures("either_side")
def test_a_derivative_that_is_wrong_for_one_decided_input_is_found(
    monkeypatch: pytest.MonkeyPatch, weights: Tensors, batches: list[np.ndarray]
):
    import torch

    inputs = np.concatenate([each.ravel() for each in relu_inputs(SPEC, weights, batches[0])])
    nearest, next_one = np.sort(inputs[inputs > 1e-6])[:2]
    right = TorchOps.relu

    def dead_near_zero(self: Any, x: Any) -> Any:
        return torch.where(x.abs() < (nearest + next_one) / 2, right(self, x).detach(), right(self, x))

    monkeypatch.setattr(TorchOps, "relu", dead_near_zero)
    rows = failed(held_rows(weights, batches[0]))
    assert {check for check, _ in rows} <= {"gradients", "directional derivative"}
    assert ("gradients", "mlx - torch") in rows and ("directional derivative", "numpy - mlx") not in rows


@pytest.mark.usefixtures("either_side")
@pytest.mark.parametrize("name", [UP, "decoder.heads.2.down_proj.weight"])
def test_a_head_weight_that_is_wrong_is_found(name: str, weights: Tensors, batches: list[np.ndarray]):
    wrong = {**weights, name: weights[name].copy()}
    wrong[name][UNIT, 2] += np.float32(1e-2) * np.abs(weights[name]).max()
    assert ("gradients", "mlx - torch") in failed(held_rows(weights, batches[0], wrong))


def test_an_engine_on_the_other_side_of_a_decided_input_is_named(weights: Tensors, batches: list[np.ndarray]):
    wrong = {**weights, UP: weights[UP].copy()}
    wrong[UP][UNIT] *= -1
    row = failed(held_rows(weights, batches[0], wrong))["relu sides, gradients", "numpy - torch"]
    assert row.measured > 1 and row.unit == "inputs differ"


@pytest.mark.usefixtures("either_side")
def test_steps_from_an_undecided_input_agree(weights: Tensors, batches: list[np.ndarray]):
    def parameters(engines: Mapping[str, Engine], begin: Any) -> ParityRow:
        runs = {name: short_run(engine, weights, batches, begin) for name, engine in engines.items()}
        return training_rows(SPEC, runs)[0]

    kinks = HeldKinks(SPEC, KINK_TRAINING_REL)
    held = parameters(kinks.engines(plain_engines()), kinks.begin)
    plain = parameters(plain_engines(), hold_nothing)
    assert held.passed and held.measured < 0.2 * plain.measured


def test_models_without_kinks_keep_their_engines():
    kinks, engines = HeldKinks(load_spec("tiny"), KINK_REL), plain_engines()
    assert kinks.engines(engines) is engines and kinks.rows("anything") == [] and kinks.note == ""


def test_sides_are_decided_once_for_each_moment(weights: Tensors, batches: list[np.ndarray]):
    """Rows of one batch come in micro-batches of any size; at other weights they are decided anew."""
    kinks, x = HeldKinks(SPEC, KINK_REL), batches[0]
    ops = NumpyOps()
    params = {name: ops.asarray(value) for name, value in weights.items()}
    whole = kinks(ops, SPEC, params, x)
    moved = {**params, UP: params[UP] + 0.1}
    parts = np.concatenate([kinks(ops, SPEC, params, x[:2]), kinks(ops, SPEC, params, x[2:])])
    np.testing.assert_allclose(parts, whole, atol=1e-12)
    before = kinks.note
    kinks(ops, SPEC, moved, x)
    assert kinks.note == before
    kinks.begin("moved")
    kinks(ops, SPEC, moved, x)
    assert kinks.note != before
