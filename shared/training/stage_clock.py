"""How long each stage of a run took, from what an observer is told anyway."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shared.runs.observer import Observer, StepReport, ValidationReport

TRAINING, CHECKPOINTS = "training", "checkpoints"


class StageClock:
    """An Observer that passes everything on and adds up the seconds of every stage, as the loop and the end of a run
    announce them.

    `training` is what the training clock counts. What passes between steps without being announced, which is waiting
    for checkpoints, is `checkpoints`; all before the first stage is `starting`.
    """

    def __init__(self, observer: Observer, clock: Callable[[], float] = time.perf_counter) -> None:
        self._observer, self._clock = observer, clock
        self._seconds: dict[str, float] = {}
        self._stage, self._begin_s = "starting", clock()
        self._trained_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observer, name)

    def on_step(self, report: StepReport) -> None:
        """A step is told when it is over, so its stage began that much earlier."""
        if self._stage != TRAINING:
            self._enter(TRAINING, self._clock() - report.step_s)
        self._trained_s += report.step_s
        self._observer.on_step(report)

    def on_stage(self, stage: str) -> None:
        """The next stage begins."""
        self._enter(stage, self._clock())
        self._observer.on_stage(stage)

    def on_validation(self, report: ValidationReport) -> None:
        """A validation is over; training goes on, or a checkpoint is written."""
        self._enter(TRAINING, self._clock())
        self._observer.on_validation(report)

    def stop(self) -> None:
        """The last stage is over."""
        self._enter("", self._clock())

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage that is over, in the order in which they first began."""
        found: dict[str, float] = {}
        for stage, seconds in self._seconds.items():
            if stage == TRAINING:
                found[TRAINING] = self._trained_s
                found[CHECKPOINTS] = max(0.0, seconds - self._trained_s)
            else:
                found[stage] = seconds
        return found

    def _enter(self, stage: str, now_s: float) -> None:
        if self._stage:
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + max(0.0, now_s - self._begin_s)
        self._stage, self._begin_s = stage, max(now_s, self._begin_s)
