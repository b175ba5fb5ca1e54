"""Recorded steps in the engine, with a stand-in for CUDA's graphs: it runs the step again from the recorded arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cuda_train.engine
from cuda_train import compiling, distributed
from cuda_train.device import wait_for
from cuda_train.step_graph import Step, StepGraph
from shared.engine.package import create_engine
from shared.engine.ranks import Ranks
from shared.errors import RanksError
from shared.model import initial_weights
from shared.model.stages import StepNumbers
from shared.optim import step_hyperparameters
from shared.spec import load_spec
from shared.tolerances import GRADIENT_REL

LOOPED = ("model.num_layers=3", "model.loop.extra_loops=1", "model.loop.first_layer=1", "model.loop.last_layer=1")
STAGES = (*LOOPED, "schedule.loop.start_frac=0.5", "model.loop.gates=true", "schedule.loop.ramp_frac=0.2")


class AgainGraph(StepGraph):
    """Replays by running the step on the arrays it was recorded with, into the result it was recorded with."""

    replays = 0

    def __init__(self, step: Step, x: np.ndarray, numbers: StepNumbers, pool: Any) -> None:
        self._step, self.pool = step, pool
        super().__init__(step, x, numbers, pool)

    def replay(self, x: np.ndarray, numbers: StepNumbers) -> torch.Tensor:
        type(self).replays += 1
        self._x.copy_(torch.from_numpy(x))
        self._numbers.copy_(torch.from_numpy(self._in_one(numbers)))
        scalars = list(self._numbers)
        run = dict(zip(self._run, scalars, strict=False))
        self._result.copy_(self._step(self._x, run, dict(zip(self._optimizer, scalars[len(run) :], strict=True))))
        return self._result


class FreedGraph:
    """CUDA's graph, as far as it can be freed."""

    is_free = False

    def reset(self) -> None:
        self.is_free = True


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    """A process group of this process alone: everything is exchanged, with nobody."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield distributed.TorchRanks()
    distributed.disconnect()
    assert not torch.distributed.is_initialized()


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of CUDA: recording computes the step on copies of what it changes, replaying runs it."""

    @contextlib.contextmanager
    def graph(*_: Any, **__: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FreedGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(cuda_train.engine, "StepGraph", AgainGraph)
    AgainGraph.replays = 0


def engine_of(*options: str, ranks: Ranks | None = None) -> Any:
    engine: Any = create_engine("torch", load_spec("tiny", ["training.compile=false", *options]), ranks=ranks)
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


def test_a_pool_of_memory_is_shared_while_it_has_a_graph_and_no_longer(recording: None):
    engine = engine_of(*STAGES)
    x = np.zeros((engine.spec.training.batch_symbols // 64, 64), np.int32)
    record(engine, x, 2)
    first, second = engine._graphs.values()
    assert first.pool is second.pool
    engine.load_state(engine.save_state())
    record(engine, x, 1)
    (again,) = engine._graphs.values()
    assert again.pool is not first.pool


def test_a_cpu_records_nothing():
    engine = engine_of()
    assert not engine._records


def test_a_recorded_step_holds_the_exchange_of_gradients(
    recording: None, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
):
    exchanged = []
    all_reduce = torch.distributed.all_reduce
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: exchanged.append(x.numel()) or all_reduce(x))
    alone, engine = engine_of("training.micro_batch_symbols=192"), engine_of(ranks=ranks)
    x = np.random.default_rng(0).integers(0, 256, (engine.spec.training.batch_symbols // 64, 64)).astype(np.int32)
    numbers = step_hyperparameters(engine.spec, 0, 0.0)
    record(engine, x, 1)
    for _ in range(3):
        assert engine.train_step(x, numbers)() == pytest.approx(alone.train_step(x, numbers)(), rel=GRADIENT_REL)
    assert AgainGraph.replays == 3
    # Once a step, those in the recording and those in what stands in for its replays: all gradients and the loss.
    assert exchanged == [1 + sum(value.numel() for value in engine.params.values())] * 4
    (recorded,) = engine._graphs.values()
    assert not recorded._graph.is_free
    distributed.disconnect()
    assert recorded._graph.is_free


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, where it imports its compiler
def test_ranks_compile_what_each_computes_by_itself_to_the_same_bits(ranks: Ranks, monkeypatch: pytest.MonkeyPatch):
    found = {}

    def compiled(function: Any, what: str, *, alike: bool = False) -> Any:
        found[what] = alike
        return compiling.compiled(function, what, alike=alike)  # torch raises where it does not know the option

    monkeypatch.setattr(cuda_train.engine, "compiled", compiled)
    engine_of("training.compile=true")
    assert not any(found.values())
    engine_of("training.compile=true", ranks=ranks)
    assert [what for what, alike in found.items() if not alike] == ["the training loss"]


def test_ranks_that_cannot_record_launch_kernel_by_kernel(
    recording: None, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")

    monkeypatch.setattr(cuda_train.engine, "StepGraph", refused)
    alone, engine = engine_of(), engine_of(ranks=ranks)
    alone._records = engine._records = True
    x = np.zeros((engine.spec.training.batch_symbols // 64, 64), np.int32)
    chosen = engine.warm_up(x)["step"]
    assert chosen["name"] == "kernel by kernel" and "not permitted" in chosen["refused"]["one graph"]
    assert engine.train_step(x, step_hyperparameters(engine.spec, 0, 0.0))()[0] > 0
    with pytest.raises(RuntimeError, match="not permitted"):
        alone.warm_up(x)


def test_a_step_that_never_ends_is_given_up():
    never: Any = SimpleNamespace(query=lambda: False)
    times = iter(range(9))
    with pytest.raises(RanksError, match="no step has ended for 5 s"):
        wait_for(never, 5.0, lambda: float(next(times)))
