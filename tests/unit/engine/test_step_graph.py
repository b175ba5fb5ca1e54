"""Recorded steps in the engine, with a stand-in for CUDA's graphs: it runs the step again from the recorded arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import cuda_train.engine
from cuda_train.step_graph import Step, StepGraph
from shared.engine.package import create_engine
from shared.model import initial_weights
from shared.model.stages import StepNumbers
from shared.optim import step_hyperparameters
from shared.spec import load_spec

LOOPED = ("model.num_layers=3", "model.loop.extra_loops=1", "model.loop.first_layer=1", "model.loop.last_layer=1")
STAGES = (*LOOPED, "schedule.loop.start_frac=0.5", "model.loop.gates=true", "schedule.loop.ramp_frac=0.2")


class AgainGraph(StepGraph):
    """Replays by running the step on the arrays it was recorded with, into the result it was recorded with."""

    replays = 0

    def __init__(self, step: Step, x: np.ndarray, numbers: StepNumbers, pool: Any) -> None:
        self._step = step
        super().__init__(step, x, numbers, pool)

    def replay(self, x: np.ndarray, numbers: StepNumbers) -> torch.Tensor:
        type(self).replays += 1
        self._x.copy_(torch.from_numpy(x))
        self._numbers.copy_(torch.from_numpy(self._in_one(numbers)))
        scalars = list(self._numbers)
        run = dict(zip(self._run, scalars, strict=False))
        self._result.copy_(self._step(self._x, run, dict(zip(self._optimizer, scalars[len(run) :], strict=True))))
        return self._result


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of CUDA: recording computes the step on copies of what it changes, replaying runs it."""

    @contextlib.contextmanager
    def graph(*_: Any, **__: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(cuda_train.engine, "StepGraph", AgainGraph)
    AgainGraph.replays = 0


def engine_of(*options: str) -> Any:
    engine: Any = create_engine("torch", load_spec("tiny", ["training.compile=false", *options]))
    engine.initialise(initial_weights(engine.spec))
    return engine


def record(engine: Any, x: np.ndarray, stages: int) -> None:
    """As warm_up records on a GPU, where recording changes nothing."""
    before = engine.save_state()
    for stage in range(stages):
        numbers = step_hyperparameters(engine.spec, 0, 0.0)
        engine._record(x, StepNumbers(stage, numbers.run, numbers.optimizer))
    graphs = dict(engine._graphs)
    tensors = {**{f"weight/{name}": value for name, value in engine.params.items()}, **engine.state}
    with torch.no_grad():
        for name, value in tensors.items():
            value.copy_(torch.from_numpy(before[name]))
    engine._graphs.update(graphs)


@pytest.mark.parametrize(
    ("options", "stages"), [(("training.micro_batch_symbols=192",), 1), (("training.ema_decay=0.9",), 1), (STAGES, 2)]
)
def test_recorded_steps_are_those_of_the_engine(recording: None, options: tuple[str, ...], stages: int):
    engines = [engine_of(*options) for _ in range(2)]
    shape = (engines[0].spec.training.batch_symbols // 64, 64)
    rng = np.random.default_rng(0)
    record(engines[1], rng.integers(0, 256, shape).astype(np.int32), stages)
    for step in range(4):
        x = rng.integers(0, 256, shape)  # int64, as any caller may have
        numbers = step_hyperparameters(engines[0].spec, 16 * step, step / 4)
        shuffled = StepNumbers(numbers.stage, numbers.run, dict(reversed(numbers.optimizer.items())))
        assert engines[0].train_step(x, numbers)() == engines[1].train_step(x, shuffled)()
    assert AgainGraph.replays == 4
    states = [engine.save_state() for engine in engines]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])


def test_another_batch_or_other_arrays_are_not_replayed(recording: None):
    engine = engine_of()
    x = np.zeros((engine.spec.training.batch_symbols // 64, 64), np.int32)
    numbers = step_hyperparameters(engine.spec, 0, 0.0)
    record(engine, x, 1)
    engine.train_step(x[:2], numbers)()
    assert AgainGraph.replays == 0
    engine.train_step(x, numbers)()
    assert AgainGraph.replays == 1
    engine.load_state(engine.save_state())  # new arrays, which no recorded step knows
    engine.train_step(x, numbers)()
    assert AgainGraph.replays == 1


def test_a_cpu_records_nothing():
    engine = engine_of()
    assert not engine._records
