"""Runs the runs of a plan one after the other, each in a folder and a process of its own; resumes where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.datasets import bind_tokenizer
from shared.runs.observer import Observer
from shared.runs.run_directory import RunDirectory
from shared.study.own_process import Order, train_apart
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
    make_observer: Callable[[], Observer],
    announce: Callable[[int, PlannedRun, bool], None],
) -> Swept:
    """Train, pack and score what is not done yet, each run in a process of its own. A run whose training breaks down
    does not stop the others.

    `make_observer` is a function of a module, because it is called in those processes. `announce` is called before
    each run with its number from 1, and whether it was finished before. Raises UserError as `train_run` does, and for
    a finished run of a text that has changed since.
    """
    ended: list[SweptRun] = []
    # The run's process has GRACE_S to save and ends first; this one then reports the results.
    with Interruption(grace_s=GRACE_S + 5.0) as interruption:
        interruption.last_words = f"bytetwin: {ENDED}; the same command resumes\n"
        specs = [bind_tokenizer(planned.spec) for planned in plan]
        # All of them first, so that a changed text is reported before anything is trained.
        finished = [
            finished_with(RunDirectory(folder / planned.name), spec) is not None
            for planned, spec in zip(plan, specs, strict=True)
        ]
        for number, (planned, spec, before) in enumerate(zip(plan, specs, finished, strict=True), start=1):
            run = RunDirectory(folder / planned.name)
            if interruption.signal_number is not None:
                return _stopped(ended, plan, folder, interruption.exit_status)
            announce(number, planned, before)
            if before:
                ended.append(SweptRun(planned, run, "finished before"))
                continue
            ending = train_apart(Order(spec, engine_name, folder, planned.name, make_observer), interruption)
            ended.append(SweptRun(planned, run, ending.status, ending.message))
            if ending.status == "interrupted":
                return _stopped(ended, plan, folder, ending.exit_status)
    return Swept(tuple(ended), 1 if any(not run.done for run in ended) else 0)


def _stopped(ended: Sequence[SweptRun], plan: Sequence[PlannedRun], folder: Path, exit_status: int) -> Swept:
    """Describe a sweep that a signal ended: what is left of the plan was not started."""
    rest = [SweptRun(later, RunDirectory(folder / later.name), "not started") for later in plan[len(ended) :]]
    return Swept((*ended, *rest), exit_status)
