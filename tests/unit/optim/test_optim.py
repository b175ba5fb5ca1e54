"""Schedules by hand; Muon and Adam against independent formulas, properties, determinism, convergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuda_train.ops import make_ops as make_torch_ops
from mlx_train.ops import make_ops as make_mlx_ops
from shared.model import initial_weights, parameter_manifest
from shared.model.initialise import named_generator
from shared.ops import NumpyOps, Ops
from shared.optim import (
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
from shared.optim.muon import muon_update, orthogonalise
from shared.spec import OptimizerSpec, Spec, load_spec
from shared.tolerances import BF16_OPERATION_REL, ORACLE_OPERATION_REL, ORTHOGONAL_BAND, UPDATE_REL

OPS: dict[str, Ops] = {"numpy": NumpyOps(), "mlx": make_mlx_ops(), "torch": make_torch_ops()}
every_implementation = pytest.mark.parametrize("name", list(OPS))
Tensors = dict[str, np.ndarray]


def tiny(*overrides: str) -> Spec:
    return load_spec("tiny", overrides)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.float64(actual) - expected) / max(np.linalg.norm(expected), 1e-30))


def limit(name: str) -> float:
    return ORACLE_OPERATION_REL if name == "numpy" else UPDATE_REL


def random_tensors(spec: Spec, seed: int, scale: float = 1.0) -> Tensors:
    return {
        parameter.name: (scale * named_generator(seed, parameter.name).standard_normal(parameter.shape)).astype(
            np.float32
        )
        for parameter in parameter_manifest(spec)
    }


def device_step(
    name: str, spec: Spec, params: Tensors, grads: Tensors, state: Tensors, hyper: Mapping[str, float]
) -> tuple[Tensors, Tensors]:
    """optimizer_step on an implementation, with values on the host."""
    ops = OPS[name]
    device = [{key: ops.asarray(value) for key, value in values.items()} for values in (params, grads, state)]
    scalars = {key: ops.asarray(np.float64(value)) for key, value in hyper.items()}
    result = optimizer_step(ops, spec, *device, global_norm(ops, device[1]), scalars)
    return tuple({key: ops.to_numpy(value) for key, value in values.items()} for values in result)


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
    assert (
        step_hyperparameters(tiny("training.steps=10", "schedule.warmup_frac=0.05"), 0, 0.0).optimizer["scalar_lr"]
        == 0.02
    )
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


# Muon.


def naive_orthogonalise(update: np.ndarray, steps: int) -> np.ndarray:
    """The iteration on singular values: it never mixes singular vectors, so it is a polynomial on each value."""
    u, s, vt = np.linalg.svd(update.astype(np.float64), full_matrices=False)
    s = s / (np.sqrt(np.sum(s**2)) + 1e-7)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ np.diag(s) @ vt


@every_implementation
@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(
    count=st.integers(1, 3),
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_newton_schulz_is_a_polynomial_of_the_singular_values(
    name: str, count: int, rows: int, columns: int, seed: int, scale: float
):
    update = (scale * np.random.default_rng(seed).standard_normal((count, rows, columns))).astype(np.float32)
    ops = OPS[name]
    actual = ops.to_numpy(orthogonalise(ops, ops.asarray(update), 5, "float32"))
    for index in range(count):
        assert relative(actual[index], naive_orthogonalise(update[index], 5)) <= max(1e-10, limit(name))


@every_implementation
@pytest.mark.parametrize("shape", [(64, 64), (64, 192), (192, 64)])
def test_muon_updates_are_nearly_orthogonal(name: str, shape: tuple[int, int]):
    ops = OPS[name]
    update = np.random.default_rng(0).standard_normal(shape)
    # A spectrum within two decades: five iterations lift smaller values only part of the way.
    u, s, vt = np.linalg.svd(update, full_matrices=False)
    update = (u * np.clip(s, 0.02 * s.max(), None)) @ vt
    values = np.linalg.svd(ops.to_numpy(orthogonalise(ops, ops.asarray(update[None]), 5, "float32"))[0])[1]
    assert ORTHOGONAL_BAND[0] < values.min() and values.max() < ORTHOGONAL_BAND[1]


@every_implementation
def test_a_zero_update_stays_zero(name: str):
    ops = OPS[name]
    assert not ops.to_numpy(orthogonalise(ops, ops.asarray(np.zeros((2, 3, 5))), 5, "float32")).any()


@pytest.mark.parametrize("name", ["mlx", "torch"])
def test_newton_schulz_in_bfloat16_is_near_and_not_the_same(name: str):
    ops = OPS[name]
    update = ops.asarray(np.random.default_rng(1).standard_normal((1, 48, 96)))
    wide, narrow = (ops.to_numpy(orthogonalise(ops, update, 5, dtype)) for dtype in ("float32", "bfloat16"))
    assert narrow.dtype == np.float32
    # One such step is known to be 4 % off (docs/techniques.md 9.2), five roundings of bfloat16.
    assert 1e-3 < relative(narrow, wide) < 5 * BF16_OPERATION_REL


@every_implementation
def test_muon_matches_an_independent_formula(name: str):
    spec = tiny("optimizer.muon_weight_decay=0.1", "optimizer.ns_steps=3")
    ops, rng = OPS[name], np.random.default_rng(2)
    shapes = {"wide": (6, 10), "tall": (10, 6), "square": (8, 8), "same": (6, 10)}
    params, momenta = ({key: rng.standard_normal(shape) for key, shape in shapes.items()} for _ in range(2))
    for _ in range(3):
        grads = {key: rng.standard_normal(shape) for key, shape in shapes.items()}
        device = [{key: ops.asarray(value) for key, value in values.items()} for values in (params, grads, momenta)]
        device[2] = {f"momentum/{key}": value for key, value in device[2].items()}
        result = muon_update(ops, spec.optimizer, *device, ops.asarray(np.float64(0.02)), ops.asarray(np.float64(0.9)))
        new_params, new_momenta = (
            {key.removeprefix("momentum/"): ops.to_numpy(value) for key, value in values.items()} for values in result
        )
        for key, (rows, columns) in shapes.items():
            momentum = 0.9 * momenta[key] + grads[key]
            direction = naive_orthogonalise(grads[key] + 0.9 * momentum, 3)
            expected = params[key] - 0.02 * 0.1 * params[key] - 0.02 * math.sqrt(max(1, rows / columns)) * direction
            assert relative(new_momenta[key], momentum) <= max(1e-6 if name != "numpy" else 0, limit(name))
            assert relative(new_params[key], expected) <= limit(name), key
        params = {key: np.float64(value) for key, value in new_params.items()}
        momenta = {key: np.float64(value) for key, value in new_momenta.items()}


# Adam.


@every_implementation
@settings(max_examples=20, derandomize=True, deadline=None, database=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=st.integers(0, 2**32 - 1),
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
        corrections = (ops.asarray(np.float64(1 - beta ** (step + 1))) for beta in (0.8, 0.9))
        lr = ops.asarray(np.float64(0.01))
        param, first, second = adam_update(
            ops, optimizer, param, ops.asarray(grads[step]), first, second, lr, *corrections
        )
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
    grad = np.array([1e-3, -5.0, 200.0])
    corrections = (ops.asarray(np.float64(0.1)), ops.asarray(np.float64(0.05)))
    zeros = ops.asarray(np.zeros(3))
    lr = ops.asarray(np.float64(0.02))
    moved, _, _ = adam_update(ops, OptimizerSpec(), zeros, ops.asarray(grad), zeros, zeros, lr, *corrections)
    assert ops.to_numpy(moved) == pytest.approx([-0.02, 0.02, -0.02], rel=2e-5)


# The whole step.


@every_implementation
def test_a_whole_step_matches_independent_updates(name: str):
    spec = tiny("optimizer.grad_clip_norm=0.5", "optimizer.adam_weight_decay=0.1", "optimizer.muon_weight_decay=0.2")
    params, grads, state = (
        random_tensors(spec, 1),
        random_tensors(spec, 2),
        initial_state(spec, random_tensors(spec, 1)),
    )
    rates = {"matrix_lr": 0.03, "embedding_lr": 0.05, "scalar_lr": 0.07, "average_rate": 0.1}
    hyper = {**step_hyperparameters(spec, 0, 0.0).optimizer, **rates}
    new_params, new_state = device_step(name, spec, params, grads, state, hyper)
    norm = math.sqrt(sum(float((np.float64(grad) ** 2).sum()) for grad in grads.values()))
    factor = 0.5 / (norm + 1e-6)
    assert new_params.keys() == params.keys() and new_state.keys() == state.keys()
    for parameter in parameter_manifest(spec):
        key, grad, param = (
            parameter.name,
            factor * np.float64(grads[parameter.name]),
            np.float64(params[parameter.name]),
        )
        if parameter.group == "matrix":
            rows, columns = parameter.shape
            direction = naive_orthogonalise(grad * (1 + hyper["momentum"]), 5) * math.sqrt(max(1, rows / columns))
            expected = param * (1 - 0.03 * 0.2) - 0.03 * direction
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
    plain, clipped, cut = (device_step(name, spec, params, grads, state, hyper) for spec in (off, loose, tight))
    assert all((plain[1][key] == clipped[1][key]).all() for key in state)
    momentum = np.concatenate([value.ravel() for key, value in cut[1].items() if key.startswith("momentum/")])
    assert 0 < np.linalg.norm(momentum) <= 1e-3


@every_implementation
def test_steps_are_deterministic_and_change_nothing_they_were_given(name: str):
    spec = tiny()
    params, grads = random_tensors(spec, 1), random_tensors(spec, 2)
    state, hyper = initial_state(spec, params), step_hyperparameters(spec, 0, 0.0).optimizer
    kept = [{key: value.copy() for key, value in values.items()} for values in (params, grads, state)]
    first = device_step(name, spec, params, grads, state, hyper)
    second = device_step(name, spec, params, grads, state, hyper)
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
    params, grads = random_tensors(spec, 1), random_tensors(spec, 2)
    state, hyper = initial_state(spec, params), step_hyperparameters(spec, 0, 0.0).optimizer
    whole, _ = device_step("numpy", spec, params, grads, state, hyper)
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


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
@every_implementation
def test_both_optimizers_solve_a_least_squares_problem(name: str, optimizer: str):
    """|W A - B|^2 for a W that exists; the learning rate falls to zero over 120 steps."""
    ops, rng = OPS[name], np.random.default_rng(7)
    a = rng.standard_normal((12, 40))
    target = rng.standard_normal((8, 12))
    settings_ = OptimizerSpec()
    update = _muon_stepper(ops, settings_) if optimizer == "muon" else _adam_stepper(ops, settings_)
    weight, losses = np.zeros((8, 12)), []
    for step in range(120):
        residual = (weight - target) @ a
        losses.append(float((residual**2).mean()))
        weight = update(weight, 2 * residual @ a.T / residual.size, step, 1 - step / 120)
    assert losses[-1] < 2e-3 * losses[0]


def _muon_stepper(ops: Ops, optimizer: OptimizerSpec) -> Callable[[np.ndarray, np.ndarray, int, float], np.ndarray]:
    state = {"momentum/w": ops.asarray(np.zeros((8, 12)))}

    def update(weight: np.ndarray, grad: np.ndarray, step: int, share: float) -> np.ndarray:
        lr, momentum = ops.asarray(np.float64(0.2 * share)), ops.asarray(np.float64(0.9))
        params, grads = {"w": ops.asarray(weight)}, {"w": ops.asarray(grad)}
        params, new = muon_update(ops, optimizer, params, grads, state, lr, momentum)
        state.update(new)
        return np.float64(ops.to_numpy(params["w"]))

    return update


def _adam_stepper(ops: Ops, optimizer: OptimizerSpec) -> Callable[[np.ndarray, np.ndarray, int, float], np.ndarray]:
    moments = [ops.asarray(np.zeros((8, 12))), ops.asarray(np.zeros((8, 12)))]

    def update(weight: np.ndarray, grad: np.ndarray, step: int, share: float) -> np.ndarray:
        lr = ops.asarray(np.float64(0.2 * share))
        corrections = (ops.asarray(np.float64(1 - beta ** (step + 1))) for beta in (0.9, 0.95))
        new, *moments[:] = adam_update(
            ops, optimizer, ops.asarray(weight), ops.asarray(grad), *moments, lr, *corrections
        )
        return np.float64(ops.to_numpy(new))

    return update
