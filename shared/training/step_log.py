"""Reports each step to the observer, and at the log cadence writes a line of metrics."""

from __future__ import annotations

from dataclasses import asdict, replace

from shared.engine.protocol import Engine
from shared.runs.metrics import MetricsLog
from shared.runs.observer import Observer, StepReport
from shared.training.deadline import Deadline
from shared.training.step_queue import DoneStep
from shared.units import bits_per_byte


class StepLog:
    """The reports of one start of a run; `last` is the newest, None before the first."""

    def __init__(
        self, engine: Engine, deadline: Deadline, metrics: MetricsLog, observer: Observer, bytes_per_symbol: float
    ) -> None:
        self.engine, self.deadline, self.metrics, self.observer = engine, deadline, metrics, observer
        self.bytes_per_symbol = bytes_per_symbol
        self.last: StepReport | None = None

    def add(self, step: int, done: DoneStep, *, is_last: bool) -> None:
        """Report that `step` steps are done, `done` the last of them; a step that `is_last` is always logged."""
        deadline, training = self.deadline, self.deadline.spec.training
        mean_s = max(deadline.pace.step_s, 1e-9)
        self.last = StepReport(
            step=step,
            nats_per_symbol=done.nats,
            bpb=bits_per_byte(done.nats, self.bytes_per_symbol),
            grad_norm=done.grad_norm,
            lr_factor=done.lr_factor,
            progress_frac=deadline.progress_frac(step, done.elapsed_s),
            elapsed_s=done.elapsed_s,
            symbols=step * training.batch_symbols,
            bytes_per_s=training.batch_symbols * self.bytes_per_symbol / mean_s,
            step_s=done.step_s,
            left_s=deadline.left_s(step, done.elapsed_s),
            peak_memory_bytes=self.engine.peak_memory_bytes(),
            logged=step == 1 or step % training.log_every_steps == 0 or is_last,
        )
        if self.last.logged:
            self._write(self.last)
        self.observer.on_step(self.last)

    def finish(self) -> None:
        """Log the last step even if it was reported before it proved to be the last."""
        if self.last is not None and not self.last.logged:
            self.last = replace(self.last, progress_frac=1.0, left_s=0.0, logged=True)
            self._write(self.last)

    def _write(self, report: StepReport) -> None:
        values = asdict(report)
        for name in ("step", "left_s", "logged"):
            del values[name]
        self.metrics.append("step", report.step, **values)
