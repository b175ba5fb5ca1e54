"""Schedules by hand; Adam and whole steps against independent formulas, properties, determinism, convergence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import SpecError
from shared.model import initial_weights, parameter_manifest
from shared.model.adapters import trained_parameters
from shared.optim import (
    by_muon,
    global_norm,
    initial_state,
    lr_factor,
    muon_momentum,
    optimizer_step,
    partition_parameters,
    progress_frac,
    step_hyperparameters,
)
from shared.optim.adam import adam_update
from shared.optim.schedule import decay_factor
from shared.spec import OptimizerSpec, load_spec
from shared.tolerances import ORACLE_OPERATION_REL, UPDATE_REL
from tests.implementations import OPS, every_implementation, examples, seeds
from tests.optimizers import number, plain_orthogonal, random_tensors, relative, step_on
from tests.techniques import tiny


def limit(name: str) -> float:
    return ORACLE_OPERATION_REL if name == "numpy" else UPDATE_REL


# Schedules: expected values written by hand.


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["schedule.warmdown_frac=0.4"], {0.0: 1.0, 0.5: 1.0, 0.6: 1.0, 0.7: 0.75, 0.8: 0.5, 0.9: 0.25, 1.0: 0.0}),
        (["schedule.warmdown_frac=0.0"], {0.0: 1.0, 0.999: 1.0, 1.0: 1.0}),
        (["schedule.warmdown_frac=1.0", "schedule.min_lr_frac=0.1"], {0.0: 1.0, 0.5: 0.55, 1.0: 0.1}),
        (
            ["schedule.warmup_frac=0.2", "schedule.warmdown_frac=0.5"],
            {0.0: 0.0, 0.05: 0.25, 0.1: 0.5, 0.2: 1.0, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0},
        ),
        (
            ["schedule.warmdown_shape=cosine", "schedule.warmdown_frac=0.4"],
            {0.6: 1.0, 0.7: 0.8535533905932737, 0.8: 0.5, 0.9: 0.14644660940672627, 1.0: 0.0},
        ),
        (
            ["schedule.warmdown_shape=cosine", "schedule.warmdown_frac=0.5", "schedule.min_lr_frac=0.2"],
            {0.5: 1.0, 0.75: 0.6, 1.0: 0.2},
        ),
    ],
)
def test_learning_rate_factor(overrides: list[str], expected: dict[float, float]):
    schedule = tiny(*overrides).schedule
    for progress, factor in expected.items():
        assert lr_factor(schedule, progress) == pytest.approx(factor, abs=1e-12), progress


def test_a_warm_up_counts_the_step_itself_and_no_step_has_the_rate_zero():
    spec = tiny("training.steps=10", "schedule.warmup_frac=0.4", "schedule.warmdown_frac=0.4")
    rates = [step_hyperparameters(spec, step, step / 10).optimizer["scalar_lr"] / 0.02 for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    # Shorter than a step: there is no warm-up, rather than a step without effect.
    short = tiny("training.steps=10", "schedule.warmup_frac=0.05")
    assert step_hyperparameters(short, 0, 0.0).optimizer["scalar_lr"] == 0.02
    # By the clock a step may be longer or shorter than one of training.steps.
    assert step_hyperparameters(spec, 0, 0.0, 0.2).optimizer["scalar_lr"] == pytest.approx(0.01)
    follows = tiny("training.steps=10", "schedule.warmup_frac=0.4", "schedule.decay_follows_lr=true")
    assert step_hyperparameters(follows, 0, 0.0).optimizer["decay_factor"] == pytest.approx(0.25)


def test_progress_by_steps_and_by_the_clock():
    by_steps = tiny("training.steps=60")
    assert [progress_frac(by_steps, step, 1e9) for step in (0, 15, 60, 90)] == [0.0, 0.25, 1.0, 1.0]
    by_time = tiny("training.steps=60", "schedule.driver=time", "training.time_limit_s=200.0")
    assert progress_frac(by_time, 0, 50.0) == 0.25
    assert progress_frac(by_time, 30, 50.0) == 0.5
    assert progress_frac(by_time, 30, 500.0) == 1.0
    assert progress_frac(by_time, 0, 50.0, end_s=160.0) == 0.3125
    reserved = tiny("schedule.driver=time", "training.time_limit_s=200.0", "training.reserve_s=40.0")
    assert progress_frac(reserved, 0, 50.0) == 0.3125


def test_momentum_warm_up():
    optimizer = tiny("optimizer.muon_momentum_warmup_steps=100").optimizer
    assert [muon_momentum(optimizer, step) for step in (0, 50, 100, 10_000)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert muon_momentum(tiny("optimizer.muon_momentum_warmup_steps=0").optimizer, 0) == 0.95


def test_decay_factor():
    taper = tiny("schedule.decay_end_frac=0.5", "schedule.decay_taper_start_frac=0.7").schedule
    for progress, factor in {0.0: 1.0, 0.7: 1.0, 0.85: 0.75, 1.0: 0.5}.items():
        assert decay_factor(taper, progress) == pytest.approx(factor, abs=1e-12), progress
    squared = tiny("schedule.decay_follows_lr=true", "schedule.warmdown_frac=0.4").schedule
    assert [decay_factor(squared, progress) for progress in (0.5, 0.8, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert decay_factor(tiny().schedule, 0.99) == 1.0


def test_hyperparameters_of_a_step():
    hyper = step_hyperparameters(tiny("optimizer.muon_momentum_warmup_steps=100"), 1, 0.8).optimizer
    expected = {
        "matrix_lr": 0.01,
        "embedding_lr": 0.015,
        "head_lr": 0.004,
        "scalar_lr": 0.01,
        "adapter_lr": 0.005,
        "momentum": 0.851,
        "first_correction": 1 - 0.9**2,
        "second_correction": 1 - 0.95**2,
        "decay_factor": 1.0,
        "average_rate": (1 - 0.9) / (1 - 0.9**2),
        "snapshot": 0.0,
    }
    assert hyper == pytest.approx(expected, rel=1e-12)
    groups = {parameter.group for parameter in parameter_manifest(load_spec("tiny", ["model.tie_embeddings=false"]))}
    assert {f"{group}_lr" for group in groups} <= hyper.keys()


# Adam.


@every_implementation
@examples
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=seeds,
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    decay=st.sampled_from([0.0, 0.1]),
)
def test_adam_matches_a_formula_written_by_hand(name: str, shape: list[int], seed: int, scale: float, decay: float):
    ops, rng = OPS[name], np.random.default_rng(seed)
    optimizer = OptimizerSpec(adam_beta1=0.8, adam_beta2=0.9, adam_eps=1e-6, adam_weight_decay=decay)
    start = rng.standard_normal(shape).astype(np.float32)
    grads = (scale * rng.standard_normal((3, *shape))).astype(np.float32)
    param, first, second = (ops.asarray(value) for value in (start, np.zeros(shape), np.zeros(shape)))
    for step in range(3):
        numbers = (number(ops, value) for value in (0.01, 1 - 0.8 ** (step + 1), 1 - 0.9 ** (step + 1)))
        param, first, second = adam_update(ops, optimizer, param, ops.asarray(grads[step]), first, second, *numbers)
    expected = start.astype(np.float64)
    for step in range(3):
        # The moments as sums over the past, not as recurrences.
        m = sum(0.2 * 0.8 ** (step - i) * np.float64(grads[i]) for i in range(step + 1)) / (1 - 0.8 ** (step + 1))
        v = sum(0.1 * 0.9 ** (step - i) * np.float64(grads[i]) ** 2 for i in range(step + 1)) / (1 - 0.9 ** (step + 1))
        expected = expected - 0.01 * decay * expected - 0.01 * m / (np.sqrt(v) + 1e-6)
    assert relative(ops.to_numpy(param), expected) <= limit(name)


@every_implementation
def test_the_first_adam_step_has_the_size_of_the_learning_rate(name: str):
    ops = OPS[name]
    grad, zeros = ops.asarray(np.array([1e-3, -5.0, 200.0])), ops.asarray(np.zeros(3))
    numbers = (number(ops, value) for value in (0.02, 0.1, 0.05))
    moved, _, _ = adam_update(ops, OptimizerSpec(), zeros, grad, zeros, zeros, *numbers)
    assert ops.to_numpy(moved) == pytest.approx([-0.02, 0.02, -0.02], rel=2e-5)


@every_implementation
def test_cautious_decay_never_works_against_the_update(name: str):
    """With a learning rate so small that only decay could matter, weights shrink exactly where they go down anyway."""
    ops, rng = OPS[name], np.random.default_rng(5)
    optimizer = OptimizerSpec(adam_weight_decay=1.0, adam_cautious_decay=True)
    param, grad = rng.standard_normal((2, 50)).astype(np.float32)
    arrays = [ops.asarray(value) for value in (param, grad, np.zeros(50), np.zeros(50))]
    new, first, second = adam_update(ops, optimizer, *arrays, number(ops, 0.01), number(ops, 0.1), number(ops, 0.05))
    plain, *moments = adam_update(ops, OptimizerSpec(), *arrays, number(ops, 0.01), number(ops, 0.1), number(ops, 0.05))
    decayed = np.abs(ops.to_numpy(new) - ops.to_numpy(plain)) > 1e-7
    assert (decayed == (param * grad > 0)).all() and 10 < decayed.sum() < 40
    assert all((ops.to_numpy(a) == ops.to_numpy(b)).all() for a, b in zip((first, second), moments, strict=True))


# The whole step.


@every_implementation
def test_a_whole_step_matches_independent_updates(name: str):
    spec = tiny("optimizer.grad_clip_norm=0.5", "optimizer.adam_weight_decay=0.1", "optimizer.muon_weight_decay=0.2")
    params, grads = random_tensors(spec, 1), random_tensors(spec, 2)
    state = initial_state(spec, params)
    rates = {"matrix_lr": 0.03, "embedding_lr": 0.05, "scalar_lr": 0.07, "average_rate": 0.1}
    hyper = {**step_hyperparameters(spec, 0, 0.0).optimizer, **rates}
    new_params, new_state = step_on(name, spec, params, grads, state, hyper)
    norm = math.sqrt(sum(float((np.float64(grad) ** 2).sum()) for grad in grads.values()))
    factor = 0.5 / (norm + 1e-6)
    assert new_params.keys() == params.keys() and new_state.keys() == state.keys()
    for parameter in parameter_manifest(spec):
        key = parameter.name
        grad, param = factor * np.float64(grads[key]), np.float64(params[key])
        if parameter.group == "matrix":
            rows, columns = parameter.shape
            direction = plain_orthogonal(grad * (1 + hyper["momentum"]), spec.optimizer)
            expected = param * (1 - 0.03 * 0.2) - 0.03 * math.sqrt(max(1, rows / columns)) * direction
        else:
            lr = {"embedding": 0.05, "scalar": 0.07}[parameter.group]
            expected = param * (1 - lr * 0.1) - lr * grad / (np.abs(grad) + 1e-8)
        assert relative(new_params[key], expected) <= max(1e-8, limit(name)), key
        average = 0.9 * param + 0.1 * expected
        assert relative(new_state[f"average/{key}"], average) <= max(1e-8, limit(name)), key


@every_implementation
def test_clipping_leaves_small_gradients_alone_and_is_off_at_zero(name: str):
    off, loose, tight = (tiny(f"optimizer.grad_clip_norm={norm}") for norm in ("0.0", "1e9", "1e-3"))
    params, grads = random_tensors(off, 1), random_tensors(off, 2)
    state, hyper = initial_state(off, params), step_hyperparameters(off, 0, 0.0).optimizer
    plain, clipped, cut = (step_on(name, spec, params, grads, state, hyper) for spec in (off, loose, tight))
    assert all((plain[1][key] == clipped[1][key]).all() for key in state)
    momentum = np.concatenate([value.ravel() for key, value in cut[1].items() if key.startswith("momentum/")])
    assert 0 < np.linalg.norm(momentum) <= 1e-3


@every_implementation
def test_steps_are_deterministic_and_change_nothing_they_were_given(name: str):
    spec = tiny()
    params, grads = random_tensors(spec, 1), random_tensors(spec, 2)
    state, hyper = initial_state(spec, params), step_hyperparameters(spec, 0, 0.0).optimizer
    kept = [{key: value.copy() for key, value in values.items()} for values in (params, grads, state)]
    first = step_on(name, spec, params, grads, state, hyper)
    second = step_on(name, spec, params, grads, state, hyper)
    for before, after in zip(kept, (params, grads, state), strict=True):
        assert all((before[key] == after[key]).all() for key in before)
    for left, right in zip(first, second, strict=True):
        assert all((left[key] == right[key]).all() for key in left)


@pytest.mark.parametrize("parts", [1, 2, 3, 100])
def test_a_partition_holds_every_parameter_once_and_updates_it_the_same(parts: int):
    spec = tiny()
    partition = partition_parameters(spec, parts)
    names = [name for part in partition for name in part]
    assert len(partition) == parts and sorted(names) == sorted(initial_weights(spec))
    work = {
        each.name: each.count * (min(each.shape) if by_muon(spec.optimizer, each.group) else 1)
        for each in trained_parameters(spec)
    }
    loads = [sum(work[name] for name in part) for part in partition]
    assert max(loads) - min(loads) <= max(work.values())
    params, grads = random_tensors(spec, 1), random_tensors(spec, 2)
    state, hyper = initial_state(spec, params), step_hyperparameters(spec, 0, 0.0).optimizer
    whole, _ = step_on("numpy", spec, params, grads, state, hyper)
    ops = OPS["numpy"]
    norm = global_norm(ops, {name: ops.asarray(value) for name, value in grads.items()})
    for part in partition:
        some = [{name: ops.asarray(values[name]) for name in part} for values in (params, grads)]
        alone, _ = optimizer_step(
            ops, spec, *some, {k: v for k, v in state.items() if k.split("/")[1] in part}, norm, hyper
        )
        assert alone.keys() == set(part)
        assert all(relative(alone[name], whole[name]) <= ORACLE_OPERATION_REL for name in part)


def test_without_an_average_no_state_is_kept_for_it():
    spec = tiny("training.ema_decay=0.0")
    state = initial_state(spec, initial_weights(spec))
    assert {key.split("/")[0] for key in state} == {"momentum", "first", "second"}


@every_implementation
def test_global_norm(name: str):
    ops = OPS[name]
    grads = {"a": ops.asarray(np.array([3.0, 0.0])), "b": ops.asarray(np.array([[0.0], [4.0]]))}
    assert float(ops.to_numpy(global_norm(ops, grads))) == pytest.approx(5.0, rel=1e-7)


@every_implementation
def test_adam_solves_a_least_squares_problem(name: str):
    """|W A - B|^2 for a W that exists; the learning rate falls to zero over 120 steps."""
    ops, rng = OPS[name], np.random.default_rng(7)
    a, target = rng.standard_normal((12, 40)), rng.standard_normal((8, 12))
    weight, losses = np.zeros((8, 12)), []
    moments = [ops.asarray(weight), ops.asarray(weight)]
    for step in range(120):
        residual = (weight - target) @ a
        losses.append(float((residual**2).mean()))
        grad = ops.asarray(2 * residual @ a.T / residual.size)
        lr, *corrections = 0.2 * (1 - step / 120), 1 - 0.9 ** (step + 1), 1 - 0.95 ** (step + 1)
        numbers = (number(ops, value) for value in (lr, *corrections))
        new, *moments = adam_update(ops, OptimizerSpec(), ops.asarray(weight), grad, *moments, *numbers)
        weight = np.float64(ops.to_numpy(new))
    assert losses[-1] < 2e-3 * losses[0]


@every_implementation
def test_the_taper_reaches_both_optimizers(name: str):
    decays = ("optimizer.muon_weight_decay=0.5", "optimizer.adam_weight_decay=0.5")
    tapered = tiny(*decays, "schedule.decay_end_frac=0.0", "schedule.decay_taper_start_frac=0.0")
    half = tiny("optimizer.muon_weight_decay=0.25", "optimizer.adam_weight_decay=0.25")
    params, grads = random_tensors(half, 1), random_tensors(half, 2)
    left, right = (
        step_on(name, spec, params, grads, initial_state(spec, params), step_hyperparameters(spec, 0, 0.5).optimizer)[0]
        for spec in (tapered, half)
    )
    assert all(relative(left[key], np.float64(right[key])) <= limit(name) for key in params)


@pytest.mark.parametrize("kind", ["muon", "adam"])
def test_cautious_decay_without_decay_is_refused(kind: str):
    with pytest.raises(SpecError, match=f"optimizer.{kind}_cautious_decay = True: must be false where") as caught:
        tiny(f"optimizer.{kind}_cautious_decay=true")
    assert "\n" not in str(caught.value)
