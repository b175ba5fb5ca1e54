"""Runs the runs of a plan, one or several at once, each in a folder and a process of its own; resumes where it
stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from data.datasets import bind_tokenizer
from shared.runs.observer import Observer
from shared.runs.run_directory import RunDirectory
from shared.study.own_process import Order, train_apart
from shared.study.places import ANYWHERE, Place
from shared.study.plan import PlannedRun
from shared.training.interruption import ENDED, GRACE_S, Interruption
from shared.training.run_data import finished_with

Status = Literal["finished", "finished before", "failed", "interrupted", "not started"]


@dataclass(frozen=True)
class SweptRun:
    """How a planned run ended; `message` says why it did not finish."""

    planned: PlannedRun
    run: RunDirectory
    status: Status
    message: str = ""

    @property
    def done(self) -> bool:
        """Whether there is a score."""
        return self.status in ("finished", "finished before")


@dataclass(frozen=True)
class Swept:
    """All runs of the plan in its order. `exit_status` is 128 + signal number if a signal ended the sweep, 1 if
    the training of a run broke down, 0 otherwise."""

    runs: tuple[SweptRun, ...]
    exit_status: int


def sweep(
    plan: Sequence[PlannedRun],
    engine_name: str,
    folder: Path,
    make_observer: Callable[[str], Observer],
    announce: Callable[[int, PlannedRun, bool], None],
    places: Sequence[Place] = (ANYWHERE,),
) -> Swept:
    """Train, pack and score what is not done yet, each run in a process of its own, one at a time in each place. A run
    whose training breaks down does not stop the others.

    `make_observer` is a function of a module, because it is called in those processes, with the name of the run.
    `announce` is called before each run with its number from 1, and whether it was finished before. Raises UserError as
    `train_run` does, and for a finished run of a text that has changed since.
    """
    runs = {planned.name: SweptRun(planned, RunDirectory(folder / planned.name), "not started") for planned in plan}
    # The runs' processes have GRACE_S to save and end first; this one then reports the results.
    with Interruption(grace_s=GRACE_S + 5.0) as interruption:
        interruption.last_words = f"bytetwin: {ENDED}; the same command resumes\n"
        specs = {name: bind_tokenizer(run.planned.spec) for name, run in runs.items()}
        # All of them first, so that a changed text is reported before anything is trained.
        finished = {name for name, run in runs.items() if finished_with(run.run, specs[name]) is not None}

        def orders() -> Iterator[Order]:
            for number, (name, spec) in enumerate(specs.items(), start=1):
                if interruption.signal_number is not None:
                    return
                announce(number, runs[name].planned, name in finished)
                if name in finished:
                    runs[name] = replace(runs[name], status="finished before")
                else:
                    yield Order(spec, engine_name, folder, name, partial(make_observer, name))

        with contextlib.closing(train_apart(orders(), places, interruption)) as endings:
            for order, ending in endings:
                runs[order.name] = replace(runs[order.name], status=ending.status, message=ending.message)
                if ending.status == "interrupted":
                    # If it alone was told to stop, that is meant for the sweep too.
                    interruption.request(ending.exit_status - 128)
    swept = tuple(runs.values())
    if any(run.status in ("interrupted", "not started") for run in swept):
        return Swept(swept, interruption.exit_status)
    return Swept(swept, int(not all(run.done for run in swept)))
