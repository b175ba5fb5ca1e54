"""Stages of a run: which function a step trains, on both engines, and that the switch compiles nothing."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from shared.engine.oracle import Oracle
from shared.engine.protocol import Engine
from shared.engine.registry import ENGINES
from shared.model import random_weights, training_loss
from shared.model.stages import (
    LOOP_RAMP,
    QAT,
    StepNumbers,
    final_numbers,
    run_numbers,
    stage_of,
    training_stages,
    warm_up_numbers,
)
from shared.optim import HYPERPARAMETERS, step_hyperparameters
from shared.parity.gradient_checks import oracle_loss
from shared.scoring.random_bytes import random_bytes_spec
from shared.spec import Spec
from shared.spec.reduced import reduced_spec
from shared.tolerances import GRADIENT_REL, LOGITS_ABS, NATS_ABS
from tests.implementations import OPS
from tests.techniques import EVERY_TERM, assert_same_gradients, every_engine, oracle_params, started, symbols, tiny

STEPS = 60


def looped(*overrides: str, extra_loops: int = 2, compiled: bool = False) -> Spec:
    """Three layers, the middle one looped from a third of the run on."""
    loop = ("model.loop.first_layer=1", "model.loop.last_layer=1", f"model.loop.extra_loops={extra_loops}")
    return tiny(*loop, "schedule.loop.start_frac=0.35", *overrides, compiled=compiled)


def stages_at(spec: Spec, *steps: int) -> list[int]:
    return [stage_of(spec, step, step / STEPS) for step in steps]


def loops_of(spec: Spec) -> list[int]:
    return [stage.model.loop.extra_loops for stage in training_stages(spec)]


def test_a_spec_without_a_later_loop_has_one_stage_and_no_numbers():
    for spec in (tiny(), looped("schedule.loop.start_frac=0.0"), looped(extra_loops=0)):
        assert training_stages(spec) == (spec,)
        numbers = step_hyperparameters(spec, 7, 0.1)
        assert (numbers.stage, numbers.run, tuple(numbers.optimizer)) == (0, {}, HYPERPARAMETERS)
        assert warm_up_numbers(spec, ("a", "b")) == [StepNumbers(0, {}, {"a": 1.0, "b": 1.0})]


def test_the_loop_starts_by_progress():
    spec = looped()
    assert loops_of(spec) == [0, 2] and training_stages(spec)[-1] is spec
    assert [stage_of(spec, 0, progress) for progress in (0.3499, 0.35)] == [0, 1]
    assert run_numbers(spec, 0, 0.35) == {}


def test_the_loop_starts_by_step():
    spec = looped("schedule.loop.start_frac=0.0", "schedule.loop.start_step=20")
    assert stages_at(spec, 0, 19, 20, 59) == [0, 0, 1, 1]
    both = looped("schedule.loop.start_step=30")
    assert stages_at(both, 21, 29, 30) == [0, 0, 1]


def test_loops_start_one_after_the_other():
    """docs/techniques.md 6.1, #1412: one extra loop from 0.5, two from 0.65."""
    spec = looped("schedule.loop.start_frac=0.5", "schedule.loop.stagger_frac=0.15")
    assert loops_of(spec) == [0, 1, 2]
    assert [stage_of(spec, 0, progress) for progress in (0.49, 0.5, 0.64, 0.66, 1.0)] == [0, 1, 1, 2, 2]
    at_once = looped("schedule.loop.start_frac=0.0", "schedule.loop.stagger_steps=10")
    assert loops_of(at_once) == [1, 2]
    assert stages_at(at_once, 0, 9, 10) == [0, 0, 1]


def test_the_ramp_by_hand():
    """docs/techniques.md 13.5: the gates rise from 0 over 20 steps, from the step in which the loop starts."""
    by_step = ("schedule.loop.start_frac=0.0", "schedule.loop.start_step=30", "schedule.loop.ramp_steps=20")
    spec = looped("model.loop.gates=true", *by_step)
    ramps = [run_numbers(spec, step, step / STEPS)[LOOP_RAMP] for step in (0, 29, 30, 31, 40, 50, 59)]
    assert ramps == [0.0, 0.0, 0.0, 0.05, 0.5, 1.0, 1.0]
    by_progress = looped("model.loop.gates=true", "schedule.loop.ramp_frac=0.25")
    assert run_numbers(by_progress, 0, 0.475)[LOOP_RAMP] == pytest.approx(0.5)


def test_the_numbers_of_a_step_by_their_use():
    spec = looped("model.loop.gates=true", "schedule.loop.ramp_frac=0.25")
    numbers = step_hyperparameters(spec, 30, 0.475)
    assert numbers.stage == 1 and list(numbers.run) == [LOOP_RAMP] and tuple(numbers.optimizer) == HYPERPARAMETERS
    assert numbers.with_run({LOOP_RAMP: 0.0}).run == {LOOP_RAMP: 0.0} and numbers.run[LOOP_RAMP] > 0.0
    assert final_numbers(spec) == StepNumbers(1, {}, {})


@every_engine
def test_each_stage_trains_its_own_function(name: str):
    """Before the switch the loss is that of the plain order; the loop's own parameters do not move."""
    spec = looped("model.loop.gates=true", "model.skip_gates=true", "schedule.loop.ramp_frac=0.5")
    plain = looped("model.skip_gates=true", extra_loops=0)
    engine, weights, x = started(name, spec), random_weights(spec, 3), symbols(spec)
    before, after = (step_hyperparameters(spec, step, step / STEPS) for step in (10, 50))
    expected = {id(before): oracle_loss(plain, weights, x), id(after): oracle_loss(spec, weights, x, after)}
    assert abs(expected[id(before)] - expected[id(after)]) > 10 * LOGITS_ABS
    for numbers in (before, after):
        assert oracle_loss(spec, weights, x, numbers) == pytest.approx(expected[id(numbers)], abs=1e-12)
        loss, gradients = engine.gradients(x, numbers)
        assert loss == pytest.approx(expected[id(numbers)], abs=LOGITS_ABS)
        moves = {key for key, gradient in gradients.items() if np.abs(gradient).max() > 0.0}
        late = {"loop.gates", "skips.1.weight", "skips.1.gate"}
        assert moves == gradients.keys() - (late if numbers is before else set())
    assert engine.train_step(x, before)()[0] == pytest.approx(expected[id(before)], abs=LOGITS_ABS)
    moved = engine.export_weights("trained")
    assert (moved["loop.gates"] == weights["loop.gates"]).all()
    assert np.abs(engine.score(x) - Oracle(spec, moved).score(x)).max() <= NATS_ABS, "a score uses every loop"


def test_both_engines_agree_in_every_stage():
    spec = looped("model.loop.gates=true", "schedule.loop.ramp_frac=0.5", "model.parallel.form=two_lane")
    engines = [started(name, spec) for name in ENGINES]
    for step in (10, 40):
        numbers = step_hyperparameters(spec, step, step / STEPS)
        assert_same_gradients(spec, *(engine.gradients(symbols(spec), numbers)[1] for engine in engines))


def test_at_the_foot_of_the_ramp_the_loop_does_nothing():
    spec = looped("model.loop.gates=true", "model.loop.skips=outside", "schedule.loop.ramp_frac=0.5")
    weights = random_weights(spec, 3)
    without, foot = (
        oracle_loss(spec, weights, symbols(spec), StepNumbers(stage, {LOOP_RAMP: 0.0}, {})) for stage in (0, 1)
    )
    assert foot == pytest.approx(without, abs=1e-12)


@every_engine
def test_warm_up_leaves_no_trace(name: str):
    spec = looped("training.micro_batch_symbols=192")
    engine = started(name, spec)
    before = engine.save_state()
    engine.warm_up(symbols(spec))
    after = engine.save_state()
    assert all((after[key] == value).all() for key, value in before.items())


def switch(engine: Engine, spec: Spec) -> list[float]:
    """Losses of the same batch right before and right after the loop starts, the learning rate being 0."""
    return [
        engine.train_step(symbols(spec), step_hyperparameters(spec, step, step / STEPS))()[0] for step in (20, 21, 22)
    ]


FROZEN = tuple(f"optimizer.{group}_lr=0.0" for group in ("matrix", "embed", "head", "scalar"))
RAMPED = ("model.loop.gates=true", "schedule.loop.ramp_frac=0.5", "training.micro_batch_symbols=192")


def assert_the_switch_shows(losses: list[float], spec: Spec) -> None:
    weights = random_weights(spec, 3)
    expected = [
        oracle_loss(spec, weights, symbols(spec), step_hyperparameters(spec, step, step / STEPS))
        for step in (20, 21, 22)
    ]
    assert len({round(loss, 5) for loss in expected}) == 3, "the ramp must show as well"
    assert losses == pytest.approx(expected, abs=GRADIENT_REL)


@pytest.mark.slow
def test_mlx_compiles_nothing_at_the_switch(monkeypatch: pytest.MonkeyPatch):
    import mlx_train.engine as mlx_engine

    traces = []
    training_loss = mlx_engine.training_loss

    def counted(*arguments, **keywords):
        traces.append(1)
        return training_loss(*arguments, **keywords)

    monkeypatch.setattr(mlx_engine, "training_loss", counted)
    spec = looped(*FROZEN, *RAMPED, compiled=True)
    engine = started("mlx", spec)
    engine.warm_up(symbols(spec))
    assert traces
    traces.clear()
    losses = switch(engine, spec)
    assert traces == []
    assert_the_switch_shows(losses, spec)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compiles_nothing_at_the_switch(monkeypatch: pytest.MonkeyPatch):
    import torch

    # What is compiled again is decided before a backend sees the graph, so a quick one serves.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    small = ("model.num_layers=2", "model.resid_mix=false", "model.decoder.kind=linear", "model.tie_embeddings=false")
    spec = looped(*FROZEN, *RAMPED, *small, "optimizer.ns_steps=1", compiled=True)
    engine = started("torch", spec)
    engine.warm_up(symbols(spec))
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses = switch(engine, spec)
        for step in (0, 1, 7, 30, 59):  # Learning rates that are not zero, and their warm-up.
            numbers = step_hyperparameters(looped(*RAMPED, "schedule.warmup_frac=0.2"), step, step / STEPS)
            assert np.isfinite(engine.train_step(symbols(spec), numbers)()).all()
    assert compiled >= 2 and torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    torch._dynamo.reset()
    assert_the_switch_shows(losses, spec)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_sees_each_stage_as_one_graph():
    import torch

    spec = looped(*RAMPED, "model.skip_gates=true", "model.ln_scale=true", "model.parallel.form=two_lane")
    engine = started("torch", spec)
    whole = torch.compile(engine._loss, backend="eager", fullgraph=True)
    x = torch.zeros((2, 64), dtype=torch.int32)
    torch._dynamo.reset()
    for stage in ("0", "1"):
        assert torch.isfinite(whole(x, stage, {LOOP_RAMP: torch.tensor(0.5)})[0])
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "overrides",
    [
        ["training.qat.form=straight_through"],
        ["training.qat.form=noise"],
        [*EVERY_TERM, "training.loss.multi_symbol.decay_end_frac=0.5", "model.num_layers=1"],
    ],
)
def test_torch_makes_one_graph_for_all_numbers_of_a_stage(overrides: list[str]):
    import torch

    spec, ops, x, graphs = tiny(*overrides), OPS["torch"], symbols(tiny()), []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    loss = torch.compile(lambda params, x: training_loss(ops, spec, params, x)[0], backend=counted, fullgraph=True)
    params, losses = {key: ops.asarray(value) for key, value in random_weights(spec, 3).items()}, []
    for step, acting in ((2, 0.0), (3, 1.0), (4, 1.0)):
        numbers = step_hyperparameters(spec, step, step / STEPS)
        if QAT in numbers.run:
            numbers = numbers.with_run({QAT: acting})
        arrays = {key: ops.asarray(np.array(value, np.float32)) for key, value in numbers.run.items()}
        losses.append(float(loss(params | arrays, ops.asarray(x))))
        expected = training_loss(OPS["numpy"], spec, oracle_params(spec) | numbers.run, x)[0]
        assert losses[-1] == pytest.approx(float(expected), abs=LOGITS_ABS)
    assert len(graphs) == 1 and losses[0] != losses[1]


def test_shorter_runs_of_a_spec_still_reach_the_loop():
    spec = looped(
        "training.steps=1000",
        "model.loop.gates=true",
        "schedule.loop.start_frac=0.0",
        "schedule.loop.start_step=600",
        "schedule.loop.ramp_steps=20",
    )
    for short in (reduced_spec(spec, 50)[0], random_bytes_spec(spec, 100)):
        loop, steps = short.schedule.loop, short.training.steps
        assert (loop.start_step, loop.ramp_steps) == (600 * steps // 1000, 20 * steps // 1000)
        assert stage_of(short, steps - 1, (steps - 1) / steps) == 1
