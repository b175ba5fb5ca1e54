"""A run as its files tell of it, running or ended: for `bytetwin watch`, from another terminal or another day."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from shared.errors import RunError
from shared.runs.metrics import Event, as_report, last_ending, number, read_events, state_of
from shared.runs.observer import StepReport
from shared.runs.run_directory import RunDirectory
from shared.runs.run_files import RunFiles
from shared.spec import Spec
from shared.units import bits_per_byte, format_bytes, format_clock
from shared.views.dashboard import Dashboard
from shared.views.plain import progress_text, score_text

# The pace of a run is that of so many logged steps.
PACE_STEPS = 5
NO_PROCESS = ", no process on this machine has it"


@dataclass(frozen=True)
class WatchedRun:
    """A run as it was read: `dashboard` draws it, `state` is that of `state_of`, `silent_s` how long ago it last
    wrote something, `in_use` whether a process of this machine has it, None if that is not known."""

    name: str
    dashboard: Dashboard
    state: str
    silent_s: float
    in_use: bool | None

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        shown = self.dashboard
        report, validation = shown.report, shown.validation
        return {
            "run": str(shown.run_path),
            "state": self.state,
            "phase": shown.phase,
            "silent_s": self.silent_s,
            "in_use": self.in_use,
            "step": shown.step,
            "progress_frac": report.progress_frac if report else 0.0,
            "elapsed_s": shown.elapsed_s,
            "left_s": report.left_s if report else None,
            "bpb": report.bpb if report else None,
            "grad_norm": report.grad_norm if report else None,
            "validation_bpb": validation.bpb if validation else None,
            "validation_step": validation.step if validation else None,
            "validation_weights": validation.weights if validation else None,
            "score_bpb": shown.score_bpb,
        }


@dataclass(frozen=True)
class WatchedRuns:
    """Several runs, one row each."""

    runs: Sequence[WatchedRun]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [_cells(run) for run in self.runs]
        told = [name for name in rows[0] if any(cells[name] for cells in rows)] if rows else []
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in told:
            table.add_column(name, overflow="fold")
        for cells in rows:
            table.add_row(*(cells[name] for name in told))
        yield table


def read_watched(run: RunDirectory) -> WatchedRun:
    """Read a run that may be running. Raises RunError if it has no spec that can be read."""
    spec, environment = run.read_spec(), {}
    # A run that starts has none yet.
    with contextlib.suppress(RunError):
        environment = run.read_environment()
    files = RunFiles(run, spec, environment, read_events(run.metrics_path))
    state = state_of(files.metrics)
    report = _last_report(files, state)
    dashboard = Dashboard(
        spec,
        str(environment.get("engine", "an unknown engine")),
        files.device,
        run.path,
        step=report.step if report else 0,
        elapsed_s=report.elapsed_s if report else 0.0,
        report=report,
        phase=_phase(files.metrics) if state == "running" else state,
    )
    places = {0: 0.0}
    for event in files.by_step("step"):
        place, nats = number(event, "progress_frac"), number(event, "nats_per_symbol")
        if place is not None and nats is not None:
            dashboard.history.add(place, bits_per_byte(nats, files.bytes_per_symbol))
            places[event["step"]] = place
    for event in files.by_step("validation"):
        validation = as_report(event)
        if validation is not None:
            dashboard.validation = validation
            before = max((step for step in places if step <= validation.step), default=0)
            dashboard.validations.append((places[before], validation.bpb))
    ending = last_ending(files.metrics)
    dashboard.score_bpb = number(ending, "bpb") if ending is not None else None
    saved = files.events("checkpoint")
    dashboard.checkpoint_step = saved[-1]["step"] if saved else None
    silent_s, in_use = _silent_s(run), run.is_in_use()
    if state == "running":
        if dashboard.phase != "training":
            dashboard.phase_start_s = time.monotonic() - silent_s
        dashboard.notice = f"last written {format_clock(silent_s)} ago{NO_PROCESS if in_use is False else ''}"
    return WatchedRun(run.name, dashboard, state, silent_s, in_use)


def _phase(events: Sequence[Event]) -> str:
    """What a running run does: it trains, unless its last event is the beginning of something else."""
    last = events[-1] if events else {}
    return str(last.get("phase", "training")) if last.get("event") == "phase" else "training"


def _last_report(files: RunFiles, state: str) -> StepReport | None:
    """The last logged step, with the time that is left if it runs."""
    steps = files.by_step("step")
    if not steps:
        return None
    last, batch = steps[-1], files.spec.training.batch_symbols
    nats = number(last, "nats_per_symbol") or 0.0
    return StepReport(
        step=last["step"],
        nats_per_symbol=nats,
        bpb=bits_per_byte(nats, files.bytes_per_symbol),
        grad_norm=_or_zero(last, "grad_norm"),
        lr_factor=_or_zero(last, "lr_factor"),
        progress_frac=min(max(_or_zero(last, "progress_frac"), 0.0), 1.0),
        elapsed_s=_or_zero(last, "elapsed_s"),
        symbols=last["step"] * batch,
        bytes_per_s=_or_zero(last, "bytes_per_s"),
        step_s=_or_zero(last, "step_s"),
        left_s=left_s(files.spec, steps) if state == "running" else None,
        peak_memory_bytes=int(_or_zero(last, "peak_memory_bytes")),
        logged=True,
    )


def left_s(spec: Spec, steps: Sequence[Event]) -> float | None:
    """Seconds of training that are left after the last of these `step` events: what the clock or the number of steps
    leaves, whichever is less; None while the pace is not known."""
    last = steps[-1]
    elapsed_s = number(last, "elapsed_s")
    if elapsed_s is None:
        return None
    by_clock = max(0.0, spec.training.steps_limit_s - elapsed_s) if spec.schedule.driver == "time" else None
    first = steps[-PACE_STEPS:][0]
    first_s, taken = number(first, "elapsed_s"), last["step"] - first["step"]
    if first_s is None or not taken:
        return by_clock
    by_steps = max(0, spec.training.steps - last["step"]) * max(0.0, elapsed_s - first_s) / taken
    return by_steps if by_clock is None else min(by_clock, by_steps)


def _cells(run: WatchedRun) -> Mapping[str, str]:
    """The row of a run by the names of its columns."""
    shown = run.dashboard
    report, validation = shown.report, shown.validation
    trains = shown.phase == "training"
    left = f"{format_clock(report.left_s)} left" if trains and report and report.left_s is not None else ""
    state = run.state if trains else shown.phase
    if run.state == "running":
        state += f", silent for {format_clock(run.silent_s)}{NO_PROCESS if run.in_use is False else ''}"
    return {
        "run": run.name,
        "state": state,
        "progress": " ".join(progress_text(shown.spec, shown.step, shown.elapsed_s).split()),
        "left": left,
        "training": f"{report.bpb:.4f} bpb" if report else "",
        "validation": f"{score_text(validation)} ({validation.weights})" if validation else "",
        "score": f"{shown.score_bpb:.4f} bpb" if shown.score_bpb else "",
        "gradient": f"{report.grad_norm:.3g}" if report else "",
        "speed": f"{format_bytes(report.bytes_per_s)}/s" if report else "",
    }


def _silent_s(run: RunDirectory) -> float:
    """Seconds since the run last wrote to its metrics, or began."""
    for path in (run.metrics_path, run.spec_path):
        with contextlib.suppress(OSError):
            return max(0.0, time.time() - path.stat().st_mtime)
    return 0.0


def _or_zero(event: Event, name: str) -> float:
    return number(event, name) or 0.0
