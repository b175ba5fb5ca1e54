"""Times the phases of a run by the calls that an observer gets anyway."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shared.runs.observer import Observer, StepReport, ValidationReport

TRAINING, CHECKPOINTS = "training", "checkpoints"


class PhaseClock:
    """An Observer that passes everything on and adds up the seconds of every phase, as the loop and the end of a run
    announce them.

    `training` is what the training clock counts. What passes between steps without being announced, which is waiting
    for checkpoints, is `checkpoints`; all before the first phase is `starting`.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float] = time.perf_counter) -> None:
        self._observer, self._clock = observer, clock
        self._seconds: dict[str, float] = {}
        self._phase, self._begin_s = "starting", clock()
        self._trained_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observer, name)

    def on_step(self, report: StepReport) -> None:
        """A step is reported when it is over, so its phase began that much earlier."""
        if self._phase != TRAINING:
            self._enter(TRAINING, self._clock() - report.step_s)
        self._trained_s += report.step_s
        self._observer.on_step(report)

    def on_phase(self, phase: str) -> None:
        """The next phase begins."""
        self._enter(phase, self._clock())
        self._observer.on_phase(phase)

    def on_validation(self, report: ValidationReport) -> None:
        """A validation is over; training continues, or a checkpoint is written."""
        self._enter(TRAINING, self._clock())
        self._observer.on_validation(report)

    def stop(self) -> None:
        """The last phase is over."""
        self._enter("", self._clock())

    def seconds(self) -> dict[str, float]:
        """Seconds of every phase that is over, in the order in which they first began."""
        found: dict[str, float] = {}
        for phase, seconds in self._seconds.items():
            if phase == TRAINING:
                found[TRAINING] = self._trained_s
                found[CHECKPOINTS] = max(0.0, seconds - self._trained_s)
            else:
                found[phase] = seconds
        return found

    def _enter(self, phase: str, now_s: float) -> None:
        if self._phase:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + max(0.0, now_s - self._begin_s)
        self._phase, self._begin_s = phase, max(now_s, self._begin_s)
