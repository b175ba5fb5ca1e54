"""How long a sweep will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from shared.units import format_clock


class TimeLeft:
    """How long the runs of a sweep will take that train or wait, if they take as long as those before them."""

    def __init__(self, names: Iterable[str], places: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.waiting, self.places, self.clock = set(names), places, clock
        self.begun_s: dict[str, float] = {}
        self.lengths_s: list[float] = []

    def began(self, name: str) -> None:
        """A run begins."""
        self.waiting.discard(name)
        self.begun_s[name] = self.clock()

    def ended(self, name: str) -> str:
        """A run has ended: `, 4 to go in about 3:20`; empty after the last one."""
        now_s = self.clock()
        self.lengths_s.append(now_s - self.begun_s.pop(name))
        others = len(self.waiting) + len(self.begun_s)
        mean_s = sum(self.lengths_s) / len(self.lengths_s)
        left_s = len(self.waiting) * mean_s + sum(max(0.0, mean_s - (now_s - s)) for s in self.begun_s.values())
        if not others:
            return ""
        return f", {others} to go in about {format_clock(left_s / min(self.places, others))}"
