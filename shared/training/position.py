"""The position of a run, and the outcome of its loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.runs.observer import ValidationReport


@dataclass
class Position:
    """The position of a run: optimizer steps done, seconds of training alone, what was last scored.

    A step is done when its result was read. `step_s` and `slowest_step_s` are the mean and the most that a recent step
    took. `saved` is the stamp of the newest checkpoint, on disk or on its way."""

    step: int = 0
    elapsed_s: float = 0.0
    last_validation: ValidationReport | None = None
    best_validation: ValidationReport | None = None
    step_s: float = 0.0
    slowest_step_s: float = 0.0
    saved: tuple[int, int] | None = None

    @property
    def stamp(self) -> tuple[int, int]:
        """(steps done, step of the last validation): what makes two checkpoints different."""
        return self.step, self.last_validation.step if self.last_validation else 0


@dataclass(frozen=True)
class Outcome:
    """The outcome of the loop. `nats` is the last training loss of this start, None if it took no step;
    `message` is one line for the user, empty where training finished. `device_failed`: in another process the run may
    get further."""

    status: Literal["finished", "paused", "interrupted", "failed"]
    step: int
    elapsed_s: float
    nats: float | None
    validation: ValidationReport | None
    best_validation: ValidationReport | None
    checkpoint: Path | None
    message: str = ""
    device_failed: bool = False


class Failure(Exception):
    """Training cannot continue; `details` go into the event `failed`."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details
