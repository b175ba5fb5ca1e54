"""The view for files and pipes: one line an event."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from shared.runs.observer import RunStart, StepReport, ValidationReport
from shared.spec import Spec
from shared.units import counted, format_bytes, format_clock, format_count, format_duration
from shared.views.stage_clock import PROGRESS_EVERY_S, StageClock, notify

STOP_NOTICE = "stopping once all is saved; a second signal ends the process at once"


class PlainObserver:
    """Prints to a console that is not a terminal, or that several runs share: `prefix` says then which one it is."""

    def __init__(self, console: Console, prefix: str = "") -> None:
        self.console, self.prefix = console, prefix
        self._phase = ""
        self._phase_start_s = self._last_progress_s = 0.0
        self._spec: Spec | None = None
        # While nothing else is reported it says which phase it is, and for how long.
        self._clock = StageClock()

    def __enter__(self) -> PlainObserver:
        return self

    def __exit__(self, *error: object) -> None:
        self._clock.stop()

    def on_start(self, start: RunStart) -> None:
        self._spec = start.spec
        for line in start_lines(start):
            self._print(line)

    def on_step(self, report: StepReport) -> None:
        self._clock.stop()
        if report.logged:
            assert self._spec is not None, "a run starts before its first step"
            left = f"  {format_clock(report.left_s)} left" if report.left_s is not None else ""
            self._print(
                f"{progress_text(self._spec, report.step, report.elapsed_s)}  loss {report.bpb:.4f} bpb  "
                f"grad {report.grad_norm:.3g}  lr x{report.lr_factor:.3f}  {format_bytes(report.bytes_per_s)}/s  "
                f"memory {format_bytes(report.peak_memory_bytes)}{left}"
            )

    def on_phase(self, phase: str) -> None:
        self._phase = phase
        self._phase_start_s = self._last_progress_s = time.monotonic()
        self._clock.start(lambda time_text: notify(self.console, f"{self.prefix}{phase}: {time_text}\n"))

    def on_progress(self, done: int, total: int) -> None:
        self._clock.stop()
        now = time.monotonic()
        if done < total and now - self._last_progress_s >= PROGRESS_EVERY_S:
            self._last_progress_s = now
            left_s = (now - self._phase_start_s) / done * (total - done)
            self._print(
                f"{self._phase}: {format_count(done)} of {format_count(total)} symbols  {format_clock(left_s)} left"
            )

    def on_validation(self, report: ValidationReport) -> None:
        self._clock.stop()
        whose = f"of the {report.weights} weights"
        self._print(
            f"validation at step {report.step}: {score_text(report)} {whose}  ({format_duration(report.seconds)})"
        )

    def on_checkpoint(self, step: int, path: Path) -> None:
        self._print(f"checkpoint {path}")

    def on_warning(self, message: str) -> None:
        self._print(f"warning: {message}")

    def on_end(self, status: str) -> None:
        self._clock.stop()
        self._print(f"run {status}")

    def on_stop_requested(self) -> None:
        notify(self.console, f"{self.prefix}{STOP_NOTICE}\n")

    def _print(self, line: str) -> None:
        self.console.print(self.prefix + line, markup=False, highlight=False, soft_wrap=True)


def start_lines(start: RunStart) -> list[str]:
    """Lines about the run that starts: spec, engine, model, and texts with their hashes."""
    spec = start.spec
    lines = [
        f"run {start.run_path}  spec {spec.name}  engine {start.engine}  device {start.device}",
        f"model {format_count(start.parameters)} parameters, patch size {spec.model.patch_size}; {_length(spec)}",
    ]
    for role, text in start.data.items():
        lines.append(
            f"{role} {text['name']}: {format_bytes(text['bytes'])} in {counted(text['documents'], 'document')}, "
            f"sha256 {text['sha256'][:16]}"
        )
    if start.step:
        lines.append(f"resumed after step {start.step}")
    return lines


def _length(spec: Spec) -> str:
    """`600 steps of 8,192 symbols`, or where the clock decides `1:45, at most 600 steps of 8,192 symbols`."""
    steps = f"{spec.training.steps:,} steps of {spec.training.batch_symbols:,} symbols"
    if spec.schedule.driver == "time":
        return f"{format_clock(spec.training.steps_limit_s)}, at most {steps}"
    return steps


def progress_text(spec: Spec, step: int, elapsed_s: float) -> str:
    """`step  40/600`, or where the clock decides `0:22 of 0:40, step 31`."""
    if spec.schedule.driver == "time":
        return f"{format_clock(elapsed_s)} of {format_clock(spec.training.steps_limit_s)}, step {step}"
    steps = spec.training.steps
    return f"step {step:>{len(str(steps))}}/{steps}"


def score_text(report: ValidationReport) -> str:
    """`2.753 bpb [2.711, 2.795]`."""
    interval = f" [{report.low_bpb:.3f}, {report.high_bpb:.3f}]" if report.low_bpb and report.high_bpb else ""
    return f"{report.bpb:.3f} bpb{interval}"
