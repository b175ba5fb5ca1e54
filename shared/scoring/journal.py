"""The journal of an adapted score: what was scored, and what was learnt of it afterwards (docs/techniques.md 14.1).

Equal steps are one line, so that the journal of a long text stays short.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from shared.scoring.checks import Check
from shared.scoring.passes import Line, Pass, Span

NAME = "adaptation"


class Journal:
    """Collects lines while passes are done, in their order."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._scored: list[Span] = []
        self._learnt: list[Span] = []

    def add(self, chosen: Pass, what: str) -> None:
        """Take note of a pass in which `what` learns. What was scored and not learnt belongs to the next line."""
        self._scored += [Span(window.count_start, window.count_stop) for window in chosen.windows]
        self._learnt += chosen.learnt
        if chosen.closes and self._learnt:
            self._append(Line(_hull(self._scored), _hull(self._learnt), what))
            self._scored, self._learnt = [], []
        if chosen.base is not None:
            # Of documents of one chunk nothing was learnt.
            last = self._scored or [self.lines[-1].scored]
            self._append(Line(_hull(last), chosen.base, "weights"))
            self._scored = []

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
