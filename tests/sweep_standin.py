"""A sweep as a program whose runs train little or nothing, for tests of their processes.

    JOBS=1 python -m tests.sweep_standin FOLDER LABEL...

What a run does in place of training is the first word of its label: the name of a function below. Prints
(name, status, message) of each run as JSON.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shared.engine.package import create_engine
from shared.errors import RunError
from shared.model import random_weights
from shared.runs.observer import Observer
from shared.runs.run_directory import RunDirectory
from shared.spec import Spec, load_spec
from shared.study import own_process
from shared.study.places import ANYWHERE, own_cores
from shared.study.plan import PlannedRun
from shared.study.sweep import sweep
from shared.training.interruption import Interruption
from shared.training.position import Outcome
from shared.training.run import RunResult
from tests.fake_training import quiet_observer

SMALL = (
    "model.num_layers=1",
    "model.resid_mix=false",
    "model.unet_skips=false",
    "model.decoder.kind=linear",
    "model.decoder.context=1",
    "optimizer.ns_steps=1",
    "training.ema_decay=0.0",
)


def variant(number: int) -> Spec:
    """One of many small specs that torch compiles one by one: a constant of the model differs."""
    return load_spec("tiny", [*SMALL, f"model.norm_eps={number + 1}e-6"])


def compiled_graphs(spec: Spec) -> int:
    """How many graphs torch makes for the training loss of a spec.

    What is compiled, and what is too much, torch decides before a backend sees a graph: a quick one serves.
    """
    import torch

    torch.compile = functools.partial(torch.compile, backend="eager")
    engine = create_engine("torch", spec)
    engine.initialise(random_weights(spec, 3))
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    engine.gradients(np.zeros((8, 64), np.int32))
    return int(counted["unique_graphs"] - before)


def observer(name: str) -> Observer:
    """Called in a run's process, which from then on trains as `stand_in` does."""
    own_process.train_run = stand_in
    return quiet_observer()


def stand_in(
    spec: Spec,
    engine_name: str,
    observer: Observer,
    *,
    runs_dir: Path,
    run_name: str | None = None,
    entered: Interruption | None = None,
    **rest: object,
) -> RunResult:
    """In place of `train_run`. The file NAME.pid says that it has begun, NAME.saved that it was let save."""
    assert run_name is not None and entered is not None
    (runs_dir / f"{run_name}.pid").write_text(str(os.getpid()))
    action: Callable[[Spec, Path, Interruption], str] = globals()[run_name.split("-")[0]]
    message = action(spec, runs_dir / run_name, entered)
    stopped = entered.signal_number is not None
    outcome = Outcome("interrupted" if stopped else "finished", 0, 0.0, None, None, None, None, message)
    return RunResult(RunDirectory(runs_dir / run_name), outcome, None, entered.exit_status if stopped else 0)


def trains(spec: Spec, path: Path, interruption: Interruption) -> str:
    return str(os.getpid())


def waits(spec: Spec, path: Path, interruption: Interruption) -> str:
    """Until it is told to stop, and then as long as saving takes: a second signal would end it meanwhile."""
    while interruption.signal_number is None:
        time.sleep(0.01)
    time.sleep(3 * own_process.POLL_S)
    path.with_suffix(".saved").touch()
    return "stopped"


def hangs(spec: Spec, path: Path, interruption: Interruption) -> str:
    """Takes notice of a signal and does not stop."""
    while interruption.signal_number is None:
        time.sleep(0.01)
    path.with_suffix(".noticed").touch()
    time.sleep(600)
    return ""


def dies(spec: Spec, path: Path, interruption: Interruption) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def breaks(spec: Spec, path: Path, interruption: Interruption) -> str:
    raise MemoryError("no memory for the model\nand a second line")


def refuses(spec: Spec, path: Path, interruption: Interruption) -> str:
    raise RunError("the data is gone")


def meets(spec: Spec, path: Path, interruption: Interruption) -> str:
    """Ends once another run that meets has begun, so never if it is alone; says in which place it was."""
    while len(list(path.parent.glob("meets-*.pid"))) < 2:
        time.sleep(0.01)
    return f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}, cores {own_cores()}"


def compiles(spec: Spec, path: Path, interruption: Interruption) -> str:
    """The loss of a model that no other run has."""
    return f"{compiled_graphs(spec)} graphs"


def planned(labels: list[str]) -> list[PlannedRun]:
    """A run of each label, with a spec of its own."""
    return [PlannedRun(label, 0, variant(number)) for number, label in enumerate(labels)]


def main(folder: Path, labels: list[str]) -> int:
    if "compiles-0" in labels:
        # Each run is still a process without any graph, but does not import torch anew.
        own_process.CONTEXT = multiprocessing.get_context("forkserver")
        own_process.CONTEXT.set_forkserver_preload(["tests.warm_torch"])
    places = [ANYWHERE] * int(os.environ.get("JOBS", "1"))
    result = sweep(planned(labels), "torch", folder, observer, lambda number, run, before: None, places)
    print(json.dumps([(run.planned.name, run.status, run.message) for run in result.runs]))
    return result.exit_status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
