"""The order of a score: windows that are scored together, and spans of text that are learnt once they were counted.

A plan is an iterator of passes, made from positions, document starts and settings alone, never from the text. Whoever
follows it, a score or a coder, does the same three things in each pass: forget where it says so, score the windows,
learn. What is learnt comes out of a `Tallied`, which has no symbol that was not counted before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from shared.scoring.windows import Window

Read = Callable[[int, int], np.ndarray]


class Span(NamedTuple):
    """The symbols [start, stop) of a stream."""

    start: int
    stop: int


@dataclass(frozen=True)
class Line:
    """A line of the journal: `scored` was scored, then `learnt` was learnt by `what`: all of it `times` over, each time
    `advance` symbols further on."""

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


@dataclass(frozen=True)
class Pass:
    """`windows` are scored together with what was learnt before the pass, and counted; then `learnt` is learnt: one
    span after the other, or where documents are scored side by side, one for each of the first rows.

    `resets`: before all that, everything learnt is forgotten; `inherits`: but for the first factors, which go on from
    those of the documents that were done since that happened last. `base`: after all that, the weights under the
    factors learn this span. `progress` is the fraction of the text's chunks before this one. `closes`: a line of the
    journal ends here. `width`: the symbols of a window that are read; 0 is all of them.
    """

    windows: tuple[Window, ...]
    learnt: tuple[Span, ...] = ()
    resets: bool = False
    inherits: bool = False
    base: Span | None = None
    progress: float = 0.0
    closes: bool = True
    width: int = 0


class Tallied:
    """The symbols of a text that were counted, which is all that may be learnt from."""

    def __init__(self, read: Read, num_symbols: int) -> None:
        """`read(start, count)` gives symbols, int32 [count], of a text of `num_symbols`."""
        self._read, self._counted = read, np.zeros(num_symbols, bool)

    def count(self, window: Window) -> None:
        """Take note that a window's own symbols were counted."""
        self._counted[window.count_start : window.count_stop] = True

    def count_all(self, chosen: Pass) -> None:
        """Take note that all windows of a pass were counted."""
        for window in chosen.windows:
            self.count(window)

    def read(self, start: int, count: int) -> np.ndarray:
        """Symbols [start, start + count), int32 [count]. An assertion fails where one of them was not counted yet."""
        assert 0 <= start <= start + count <= len(self._counted), f"symbols [{start}, {start + count}) are outside"
        assert self._counted[start : start + count].all(), f"symbols [{start}, {start + count}) were not all scored yet"
        return self._read(start, count)


class Adapter(Protocol):
    """What scores the windows of passes, and learns between them."""

    def score(self, x: np.ndarray) -> np.ndarray:
        """-ln p(x[:, t] | x[:, :t]) with what was learnt so far: [B, T] float32, nats. Changes nothing."""

    def reset(self, chosen: Pass) -> None:
        """Forget what a pass says is forgotten before it."""

    def learn(self, chosen: Pass, text: Tallied) -> None:
        """Learn what a pass says is learnt after it, all of which was counted."""

    def save_state(self) -> dict[str, np.ndarray]:
        """All that was learnt, float32 by name, for `load_state` of an adapter of the same kind."""

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over the result of `save_state`."""
