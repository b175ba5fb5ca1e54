"""Interleaved rANS over lanes: symbols under the frequencies of a model to 16-bit words and back, in integers alone.

A lane is a state in [2^16, 2^32). A step codes one symbol in each of the first lanes; lanes that fall below 2^16 take a
word each, in the order of lanes. An escaped symbol is followed, after that, by eight plain bits in the same lane. The
encoder runs the steps backwards from states of 2^16, so the decoder ends with these: a check of every word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.artifact.range_model import ESCAPE, NUM_SYMBOLS, PRECISION, TOTAL, AdaptiveModel
from shared.errors import ArtifactError
from shared.quantisers.code_lengths import NUM_BINS
from shared.quantisers.trellis_states import TRELLISES

LOWEST = 1 << 16
WORD_BITS = 16
PLAIN_BITS = 8

MIN_CHUNK, MAX_CHUNK = 1 << 10, 1 << 17

Steps = list[tuple[int, int]]


@dataclass(frozen=True)
class Run:
    """Symbols that are coded one after the other, in steps of at most `lanes`. With a trellis of `states` they are the
    columns of a matrix of `rows`, and each column is cut into steps of about equal size."""

    size: int
    lanes: int
    rows: int = 0
    states: int = 0

    def chunks(self, model: AdaptiveModel) -> Iterator[Steps]:
        """Start and end of each step, in groups. The model's tables are made anew for each group: once an eighth more
        has been counted."""
        group: Steps = []
        for start, end in self._steps():
            group.append((start, end))
            if end - group[0][0] >= min(max(model.num_counted >> 3, MIN_CHUNK), MAX_CHUNK):
                yield group
                group = []
        if group:
            yield group

    def _steps(self) -> Iterator[tuple[int, int]]:
        column = self.rows if self.states else self.size
        width = -(-column // -(-column // self.lanes)) if self.states else self.lanes
        for first in range(0, self.size, max(column, 1)):
            for start in range(first, first + column, width):
                yield start, min(start + width, first + column)


@dataclass(frozen=True)
class _Group:
    """Steps under the same tables: frequency and start of each symbol, and the positions and symbols of the escaped."""

    steps: Steps
    frequencies: NDArray[np.uint16]
    starts: NDArray[np.uint16]
    escaped: NDArray[np.intp]
    plain: NDArray[np.uint8]


class Encoder:
    """Collects runs, then encodes them backwards."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._groups: list[_Group] = []

    def add(self, run: Run, model: AdaptiveModel, contexts: NDArray[np.uint8], symbols: NDArray[np.uint8]) -> None:
        """Add the symbols of a run; the model learns them. Contexts include the quantisers of a trellis."""
        for steps in run.chunks(model):
            part = slice(steps[0][0], steps[-1][1])
            model.refresh(contexts[part])
            places = contexts[part].astype(np.int64) * NUM_SYMBOLS
            is_escaped = (model.frequencies[places + symbols[part]] == 0) | (symbols[part] == ESCAPE)
            escaped = np.flatnonzero(is_escaped)
            places += np.where(is_escaped, ESCAPE, symbols[part])
            frequencies, starts = (table[places].astype(np.uint16) for table in (model.frequencies, model.starts))
            self._groups.append(_Group(steps, frequencies, starts, escaped, symbols[part][escaped]))
            model.count(contexts[part], symbols[part])

    def finish(self) -> bytes:
        """The states that decoding starts from, then the words."""
        lanes = np.full(self._lanes, LOWEST, np.int64)
        words: list[NDArray[np.uint16]] = []
        for group in reversed(self._groups):
            first = group.steps[0][0]
            borders = np.searchsorted(group.escaped, [start - first for start, _ in group.steps] + [len(group.starts)])
            for index, (start, end) in reversed(list(enumerate(group.steps))):
                here = lanes[: end - start]
                part = slice(borders[index], borders[index + 1])
                if part.start < part.stop:
                    escaped = group.escaped[part] - (start - first)
                    _spill(here, escaped[here[escaped] >= 1 << 32 - PLAIN_BITS], words)
                    here[escaped] = (here[escaped] << PLAIN_BITS) | group.plain[part]
                frequencies = group.frequencies[start - first : end - first].astype(np.int64)
                _spill(here, np.flatnonzero(here >= frequencies << 32 - PRECISION), words)
                quotients, rests = np.divmod(here, frequencies)
                here[:] = (quotients << PRECISION) + rests + group.starts[start - first : end - first]
        states = lanes.astype("<u4").tobytes()
        return states + np.concatenate([np.empty(0, "<u2"), *words[::-1]]).astype("<u2").tobytes()


def _spill(lanes: NDArray[np.int64], full: NDArray[np.intp], words: list[NDArray[np.uint16]]) -> None:
    """Move the low words of lanes that are too large for the next symbol to the front of the stream."""
    words.append(lanes[full].astype(np.uint16))
    lanes[full] >>= WORD_BITS


class Decoder:
    """Reads runs in the order in which they were added. Raises ArtifactError for a stream that ends early."""

    def __init__(self, stream: bytes, lanes: int) -> None:
        if len(stream) < 4 * lanes or len(stream) % 2:
            raise ArtifactError("range coded section is truncated")
        self._lanes = np.frombuffer(stream, "<u4", lanes).astype(np.int64)
        self._words = np.frombuffer(stream, "<u2", offset=4 * lanes)
        self._next = 0
        if (self._lanes < LOWEST).any():
            raise ArtifactError("range coded section has a state below its range")

    def read(self, run: Run, model: AdaptiveModel, bins: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The symbols of a run whose contexts are bins, with a trellis plus NUM_BINS in the second quantiser."""
        symbols = np.empty(run.size, np.uint8)
        trellis = TRELLISES[run.states] if run.states else None
        states = np.zeros(run.rows, np.intp)
        for steps in run.chunks(model):
            first, last = steps[0][0], steps[-1][1]
            contexts = bins[first:last].astype(np.int64)
            model.refresh(bins[first:last])
            if trellis is not None:
                model.refresh(bins[first:last] + np.uint8(NUM_BINS))
            for start, end in steps:
                here = contexts[start - first : end - first]
                if trellis is None:
                    symbols[start:end] = self._step(model, here)
                else:
                    row = start % run.rows
                    of_rows = states[row : row + end - start]
                    here += NUM_BINS * trellis.quantiser[of_rows].astype(np.int64)
                    found = self._step(model, here)
                    of_rows[:] = trellis.next_state[of_rows, found & 1]
                    symbols[start:end] = found
            model.count(contexts, symbols[first:last])
        return symbols

    def finish(self) -> None:
        """Check that everything was read and that the states are those from which encoding started."""
        if self._next != len(self._words) or (self._lanes != LOWEST).any():
            raise ArtifactError("range coded section does not end where its codes end")

    def _step(self, model: AdaptiveModel, contexts: NDArray[np.int64]) -> NDArray[np.uint8]:
        lanes = self._lanes[: len(contexts)]
        slots = lanes & (TOTAL - 1)
        symbols = model.symbols[(contexts << PRECISION) + slots]
        places = contexts * NUM_SYMBOLS + symbols
        lanes >>= PRECISION
        lanes *= model.frequencies[places]
        lanes += slots
        lanes -= model.starts[places]
        self._refill(lanes, np.flatnonzero(lanes < LOWEST))
        if not symbols.all():
            escaped = np.flatnonzero(symbols == ESCAPE)
            symbols[escaped] = lanes[escaped] & ((1 << PLAIN_BITS) - 1)
            lanes[escaped] >>= PLAIN_BITS
            self._refill(lanes, escaped[lanes[escaped] < LOWEST])
        return symbols

    def _refill(self, lanes: NDArray[np.int64], low: NDArray[np.intp]) -> None:
        end = self._next + len(low)
        if end > len(self._words):
            raise ArtifactError("range coded section is truncated")
        lanes[low] = (lanes[low] << WORD_BITS) | self._words[self._next : end]
        self._next = end
