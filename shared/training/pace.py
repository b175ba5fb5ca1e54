"""How fast training goes, for the time left and the bytes per second."""

from __future__ import annotations

# A step counts this much less for each later one: the figure follows the last 20 steps or so.
MEMORY = 0.95


class Pace:
    """A running mean over recent steps. The first step of a process is left out: it compiles."""

    def __init__(self) -> None:
        self._steps = 0
        self._weight = 0.0
        self._seconds = 0.0
        self._progress = 0.0

    def add(self, seconds: float, progress: float) -> None:
        """One step that took `seconds` and moved the run on by the fraction `progress`."""
        self._steps += 1
        keep = MEMORY if self._steps > 2 else 0.0
        self._weight = keep * self._weight + 1.0
        self._seconds = keep * self._seconds + seconds
        self._progress = keep * self._progress + progress

    @property
    def step_s(self) -> float:
        """Seconds per step, 0 before the first."""
        return self._seconds / self._weight if self._weight else 0.0

    def left_s(self, remaining_progress: float) -> float | None:
        """Seconds for the rest of the run; None while only a compiling step was seen."""
        if self._steps < 2 or self._progress <= 0.0:
            return None
        return self._seconds / self._progress * remaining_progress
