"""Runs the runs of a plan, one or several at once, each in a folder and a process of its own; resumes where it
stopped. With a `Halving` all of them go from rung to rung, and those that cannot win are left at one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from data.datasets import bind_tokenizer
from shared.runs.observer import Observer
from shared.runs.run_directory import RunDirectory, check_same_training
from shared.sinks.following import check_installed
from shared.study.halving import Halved, Halving, Rung, decide
from shared.study.own_process import Order, train_apart
from shared.study.places import ANYWHERE, Place
from shared.study.plan import PlannedRun
from shared.study.rungs import check_same_validation, is_past, validation_at, what_was_saved
from shared.study.time_left import TimeLeft
from shared.training.interruption import ENDED, GRACE_S, Interruption
from shared.training.run_data import finished_with

Status = Literal["finished", "finished before", "stopped", "paused", "failed", "interrupted", "not started"]


@dataclass(frozen=True)
class SweptRun:
    """How a planned run ended; `message` says why it did not finish. `paused` waits for a decision of the halving,
    `stopped` is one."""

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
    the training of a run broke down, 0 otherwise. `halved` is there if the sweep was to be."""

    runs: tuple[SweptRun, ...]
    exit_status: int
    halved: Halved | None = None


Announce = Callable[[int, PlannedRun, str], None]


def sweep(
    plan: Sequence[PlannedRun],
    engine_name: str,
    folder: Path,
    make_observer: Callable[[str], Observer],
    announce: Announce,
    places: Sequence[Place] = (ANYWHERE,),
    *,
    log: Sequence[str] = (),
    halving: Halving | None = None,
    baseline: str | None = None,
) -> Swept:
    """Train, pack and score what is not done yet, each run in a process of its own, one at a time in each place. A run
    whose training breaks down does not stop the others.

    `make_observer` is a function of a module, because it is called in those processes, with the name of the run.
    `announce` is called before each run with its number from 1, and what is to be done. `log` names sinks; `baseline`
    is the label, by default the first, that a `halving` never stops. Raises UserError as `train_run` does, for a
    finished run of a text that has changed since, and as `check_same_validation` does.
    """
    check_installed(log)
    # The runs' processes have GRACE_S to save and end first; this one then reports the results.
    with Interruption(grace_s=GRACE_S + 5.0) as interruption:
        interruption.last_words = f"bytetwin: {ENDED}; the same command resumes\n"
        course = _Course(plan, engine_name, folder, make_observer, announce, places, tuple(log), interruption)
        rungs = course.halve(halving, baseline or plan[0].label) if halving is not None else []
        course.train(run.planned for run in course.runs.values() if run.status != "stopped")
        return course.result(halving, rungs)


class _Course:
    """The runs of a plan by name, and the calls that bring them on."""

    def __init__(
        self,
        plan: Sequence[PlannedRun],
        engine_name: str,
        folder: Path,
        make_observer: Callable[[str], Observer],
        announce: Announce,
        places: Sequence[Place],
        log: tuple[str, ...],
        interruption: Interruption,
    ) -> None:
        self.engine_name, self.folder, self.make_observer, self.announce = engine_name, folder, make_observer, announce
        self.places, self.log, self.interruption = places, log, interruption
        self.runs = {
            planned.name: SweptRun(planned, RunDirectory(folder / planned.name), "not started") for planned in plan
        }
        self.numbers = {name: number for number, name in enumerate(self.runs, start=1)}
        self.specs = {name: bind_tokenizer(run.planned.spec) for name, run in self.runs.items()}
        # All of them first, so that a changed text is reported before anything is trained.
        self.finished = {
            name for name, run in self.runs.items() if finished_with(run.run, self.specs[name]) is not None
        }

    def train(self, chosen: Iterable[PlannedRun], pause_frac: float = 1.0) -> None:
        """Bring runs to their end or to `pause_frac` of their budget, except those that are there or have failed."""
        chosen = list(chosen)
        waiting = (run.name for run in chosen if self._waits(run.name) and run.name not in self.finished)
        self.time_left = TimeLeft(waiting, len(self.places))
        with contextlib.closing(
            train_apart(self._orders(chosen, pause_frac), self.places, self.interruption)
        ) as endings:
            for order, ending in endings:
                self._note(order.name, ending.status, ending.message)
                left = self.time_left.ended(order.name)
                if ending.bpb is not None:
                    planned = self.runs[order.name].planned
                    words = f"finished, {ending.bpb:.4f} bits per byte{left}"
                    self.announce(self.numbers[order.name], planned, words)
                if ending.status == "interrupted":
                    # If it alone was told to stop, that is meant for the sweep too.
                    self.interruption.request(ending.exit_status - 128)

    def halve(self, halving: Halving, baseline: str) -> list[Rung]:
        """Bring the groups from rung to rung; the runs of those that stay wait at the last one."""
        if len(self.finished) < len(self.runs):
            check_same_validation(run.planned for run in self.runs.values())
        groups = list(dict.fromkeys(run.planned.label for run in self.runs.values()))
        rungs: list[Rung] = []
        left = groups
        for budget_frac, keep in halving.rungs(len(groups)):
            if len(left) <= keep:
                continue
            self.train((run.planned for run in self.runs.values() if run.planned.label in left), budget_frac)
            if self.interruption.signal_number is not None:
                break
            if values := self._validations(left, budget_frac):
                rungs.append(Rung(budget_frac, decide(values, keep, baseline, halving)))
                self._stop(rungs[-1])
            left = [label for label in left if not rungs or label not in rungs[-1].stopped]
        return rungs

    def result(self, halving: Halving | None, rungs: Sequence[Rung]) -> Swept:
        """How all runs stand now."""
        runs, halved = tuple(self.runs.values()), None
        if halving is not None:
            stopped = [(run.run, self.specs[name]) for name, run in self.runs.items() if run.status == "stopped"]
            halved = Halved(halving, tuple(rungs), what_was_saved(stopped, [run.run for run in runs]))
        if any(run.status in ("interrupted", "paused", "not started") for run in runs):
            return Swept(runs, self.interruption.exit_status, halved)
        return Swept(runs, int(any(run.status == "failed" for run in runs)), halved)

    def _orders(self, chosen: Iterable[PlannedRun], pause_frac: float) -> Iterator[Order]:
        to_end = pause_frac == 1.0
        for planned in chosen:
            name, number, run = planned.name, self.numbers[planned.name], self.runs[planned.name]
            if self.interruption.signal_number is not None:
                return
            if not self._waits(name):
                continue
            if name in self.finished:
                self.announce(number, planned, "finished before")
                self._note(name, "finished before")
            elif not to_end and validation_at(run.run, pause_frac) is not None:
                check_same_training(run.run.read_spec(), self.specs[name], str(run.run.path))
                self._note(name, "paused")
            elif to_end or not is_past(run.run, self.specs[name], pause_frac):
                self.announce(number, planned, "training" if to_end else f"training to {pause_frac:.3g} of its budget")
                observer = partial(self.make_observer, name)
                self.time_left.began(name)
                yield Order(self.specs[name], self.engine_name, self.folder, name, observer, pause_frac, self.log)

    def _waits(self, name: str) -> bool:
        """Whether a run is neither done in this sweep nor failed in it."""
        return not self.runs[name].done and self.runs[name].status != "failed"

    def _note(self, name: str, status: Status, message: str = "") -> None:
        self.runs[name] = replace(self.runs[name], status=status, message=message)

    def _validations(self, labels: Sequence[str], budget_frac: float) -> dict[str, dict[int, float]]:
        """Bits per byte at a rung by label and seed. Runs that failed or were past it when the sweep began are not
        compared."""
        found: dict[str, dict[int, float]] = {label: {} for label in labels}
        for run in self.runs.values():
            bpb = validation_at(run.run, budget_frac) if run.planned.label in found and run.status != "failed" else None
            if bpb is not None:
                found[run.planned.label][run.planned.seed] = bpb
        return {label: values for label, values in found.items() if values}

    def _stop(self, rung: Rung) -> None:
        for name, run in self.runs.items():
            if run.planned.label in rung.stopped and not run.done and run.status != "failed":
                self._note(name, "stopped", f"stopped at {rung.budget_frac:.3g} of its budget")
