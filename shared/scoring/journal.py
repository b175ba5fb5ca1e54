"""The journal of an adapted score: what was scored, and what was learnt of it afterwards (docs/techniques.md 14.1).

Equal steps are one line, so that the journal of a long text stays short.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shared.scoring.checks import Check
from shared.scoring.passes import Pass, Span

NAME = "adaptation"


@dataclass(frozen=True)
class Line:
    """`scored` was scored, then `learnt` was learnt by `what`: all of it `times` over, each time `advance` symbols
    further on."""

    scored: Span
    learnt: Span
    what: str
    times: int = 1
    advance: int = 0

    def to_document(self) -> dict[str, Any]:
        """Plain values for score.json."""
        return {**self.__dict__, "scored": list(self.scored), "learnt": list(self.learnt)}

    def moved(self, times: int) -> tuple[Span, Span]:
        """(scored, learnt) of one of the times, counted from 0."""
        first, second = (Span(*(end + times * self.advance for end in span)) for span in (self.scored, self.learnt))
        return first, second


class Journal:
    """Collects lines while passes are done, in their order."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._scored: list[Span] = []
        self._learnt: list[Span] = []

    def add(self, chosen: Pass, what: str, closes: bool) -> None:
        """Take note of a pass. `closes`: with it a line is complete, unless nothing was learnt; what was scored without
        being learnt from belongs to the next line."""
        self._scored += [Span(window.count_start, window.count_stop) for window in chosen.windows]
        self._learnt += chosen.learnt
        if closes and self._learnt:
            self._append(Line(_hull(self._scored), _hull(self._learnt), what))
            self._scored, self._learnt = [], []
        if chosen.base is not None:
            last = _hull(self._scored or [self.lines[-1].scored])
            self._append(Line(last, chosen.base, "weights"))

    def _append(self, line: Line) -> None:
        if self.lines:
            last = self.lines[-1]
            advance = line.scored.start - last.moved(last.times - 1)[0].start
            longer = replace(last, times=last.times + 1, advance=advance)
            alike = line.what == last.what and last.advance in (0, advance) and advance > 0
            if alike and longer.moved(last.times) == (line.scored, line.learnt):
                self.lines[-1] = longer
                return
        self.lines.append(line)


def check_journal(lines: Iterable[Line], num_symbols: int) -> Check:
    """Nothing was learnt that had not been scored before (docs/techniques.md 1.3, condition 3)."""
    scored = np.zeros(num_symbols, bool)
    early = learnt = 0
    for line in lines:
        for index in range(line.times):
            before, after = line.moved(index)
            scored[before.start : before.stop] = True
            early += int(np.count_nonzero(~scored[after.start : after.stop]))
            learnt += after.stop - after.start
    detail = f"{learnt:,} symbols learnt, {early} of them before they were scored"
    return Check(NAME, early == 0, float(early), 0.0, detail)


def _hull(spans: list[Span]) -> Span:
    """The smallest span around some."""
    return Span(min(span.start for span in spans), max(span.stop for span in spans))
