"""What the files of the runs of a halved sweep say: where each stands at a rung, and what was saved."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from data.datasets import open_split
from shared.errors import UserError
from shared.optim import progress_frac
from shared.runs.checkpoints import CheckpointInfo, CheckpointStore
from shared.runs.metrics import Event, number, read_events
from shared.runs.run_directory import RunDirectory
from shared.spec import Spec
from shared.study.halving import Saved
from shared.study.plan import PlannedRun
from shared.training.phase_clock import TRAINING
from shared.training.sources import VALIDATION_SEED


def check_same_validation(plan: Iterable[PlannedRun]) -> None:
    """Raise UserError naming the first two experiments that are not validated on the same documents, and DataError as
    `open_split` does."""
    first: tuple[str, tuple[str, int, int]] | None = None
    for label, spec in {planned.label: planned.spec for planned in plan}.items():
        heldout = open_split(spec.data.heldout, "heldout", spec.vocabulary)
        sample = heldout.sample_documents(spec.evaluation.val_symbols, VALIDATION_SEED)
        found = (sample.name, sample.num_documents, sample.num_bytes)
        first = first or (label, found)
        if found != first[1]:
            texts = (f"{who} on {size:,} bytes of {name}" for who, (name, _, size) in (first, (label, found)))
            raise UserError(f"--halving compares validations of the same text: {', '.join(texts)}")


def validation_at(run: RunDirectory, budget_frac: float) -> float | None:
    """Bits per byte of the validation with which a run paused there; None if it did not."""
    events = read_events(run.metrics_path)
    pauses = [event["step"] for event in events if _pauses(event) and number(event, "pause_frac") == budget_frac]
    found = [event for event in events if event["event"] == "validation" and event["step"] in pauses[-1:]]
    return number(found[-1], "bpb") if found else None


def is_past(run: RunDirectory, spec: Spec, budget_frac: float) -> bool:
    """Whether the last checkpoint of a run is more than a step behind that fraction of its budget."""
    info = _position(run)
    return info is not None and progress_frac(spec, info.step - 1, info.elapsed_s - info.step_s) >= budget_frac


def what_was_saved(stopped: Iterable[tuple[RunDirectory, Spec]], all_runs: Iterable[RunDirectory]) -> Saved:
    """The sums over the runs that were stopped, and over all runs of the sweep."""
    runs, steps, seconds = 0, 0, 0.0
    for run, spec in stopped:
        info = _position(run)
        if info is not None and info.step_s > 0.0:
            left_s = (spec.training.steps - info.step) * info.step_s
            if spec.schedule.driver == "time":
                left_s = min(left_s, max(0.0, spec.training.steps_limit_s - info.elapsed_s))
            steps, seconds = steps + round(left_s / info.step_s), seconds + left_s
        runs += 1
    trained_s = pauses_s = 0.0
    for run in all_runs:
        info = _position(run)
        trained_s += info.elapsed_s if info is not None else 0.0
        pauses_s += _pauses_s(read_events(run.metrics_path))
    return Saved(runs, steps, seconds, trained_s, pauses_s)


def _pauses(event: Event) -> bool:
    return event["event"] == "paused"


def _position(run: RunDirectory) -> CheckpointInfo | None:
    return CheckpointStore(run.checkpoints_path, keep=1).latest_info()


def _pauses_s(events: list[Event]) -> float:
    """Seconds that the starts which ended in a pause took beside training."""
    total = 0.0
    for before, event in itertools.pairwise(events):
        seconds = event.get("seconds")
        if _pauses(before) and event["event"] == "phases" and isinstance(seconds, dict):
            total += sum(number(seconds, phase) or 0.0 for phase in seconds if phase != TRAINING)
    return total
