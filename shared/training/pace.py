"""The pace of training steps, for the time left, the bytes per second and the end of a run by the clock."""

from __future__ import annotations

# A step counts this much less for each later one: the figure follows the last 20 steps or so.
MEMORY = 0.95
# The slowest step is that of the last so many to twice as many.
SLOWEST_OF_STEPS = 1000


class Pace:
    """A running mean over recent steps, and the slowest of them. The first step of a process is left out: it compiles.

    `step_s` and `slowest_s` are those of an earlier start of the run; they hold until two steps were made.
    """

    def __init__(self, step_s: float = 0.0, slowest_s: float = 0.0) -> None:
        self._earlier_s, self._slowest_before_s = step_s, slowest_s
        self._steps = 0
        self._weight = 0.0
        self._seconds = 0.0
        self._slowest_s = 0.0

    def add(self, seconds: float) -> None:
        """One step that took `seconds`."""
        self._steps += 1
        keep = MEMORY if self._steps > 2 else 0.0
        self._weight = keep * self._weight + 1.0
        self._seconds = keep * self._seconds + seconds
        if self._steps % SLOWEST_OF_STEPS == 0:
            self._slowest_before_s, self._slowest_s = self._slowest_s, 0.0
        self._slowest_s = max(self._slowest_s, seconds) if self._steps > 2 else seconds

    @property
    def is_known(self) -> bool:
        """Whether a step was timed that did not compile."""
        return self._steps > 1 or self._earlier_s > 0.0

    @property
    def step_s(self) -> float:
        """Seconds per step, 0 before the first."""
        if self._steps < 2 and self._earlier_s:
            return self._earlier_s
        return self._seconds / self._weight if self._weight else 0.0

    @property
    def slowest_s(self) -> float:
        """Seconds of the slowest recent step, 0 before the first."""
        if self._steps < 2 and self._earlier_s:
            return self._slowest_before_s
        return max(self._slowest_before_s, self._slowest_s)
