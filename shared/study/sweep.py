"""Runs the runs of a plan one after the other, each in a folder of its own, and goes on where it was stopped."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.study.plan import PlannedRun
from shared.training.observer import Observer
from shared.training.record import finished_with
from shared.training.run import train_run
from shared.training.run_directory import RunDirectory

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
    make_observer: Callable[[], Observer],
    announce: Callable[[int, PlannedRun, bool], None],
) -> Swept:
    """Train, pack and score what is not done yet. A run whose training breaks down does not stop the others.

    `announce` is called before each run with its number from 1, and whether it was finished before. Raises
    UserError as `train_run` does.
    """
    ended: list[SweptRun] = []
    for number, planned in enumerate(plan, start=1):
        run = RunDirectory(folder / planned.name)
        before = finished_with(run, planned.spec) is not None
        announce(number, planned, before)
        if before:
            ended.append(SweptRun(planned, run, "finished before"))
            continue
        with make_observer() as observer:
            result = train_run(planned.spec, engine_name, observer, runs_dir=folder, run_name=planned.name, resume=True)
        status: Status = result.outcome.status
        ended.append(SweptRun(planned, run, status, result.outcome.message))
        if status == "interrupted":
            rest = [SweptRun(later, RunDirectory(folder / later.name), "not started") for later in plan[number:]]
            return Swept((*ended, *rest), result.exit_status)
        # The next engine needs the memory that this one had.
        del result
        gc.collect()
    return Swept(tuple(ended), 1 if any(not run.done for run in ended) else 0)
