"""Bits per byte of a model on a text: sum of nats / ln 2 / bytes of the text (docs/techniques.md 1.2).

The nats come from the scorer, everything else from the text itself, and the text's bytes are counted
twice, symbol by symbol and from the joined text, so that neither count can drift unseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from data.stream import SymbolStream
from shared.engine.protocol import Scorer
from shared.errors import DataError, RunError
from shared.scoring.confidence import Confidence, ratio_interval
from shared.scoring.documents import NO_DOCUMENTS, DocumentScores
from shared.scoring.windows import NO_EVIDENCE, Evidence, PositionSums, Window, even_rows, kept_windows, plan_windows
from shared.spec import Spec

if TYPE_CHECKING:
    from shared.scoring.passes import Line
    from shared.scoring.resume import ScoreState

Progress = Callable[[int, int], None]
WindowPlan = Callable[[int, int, int], Sequence[Window]]
# Is told every window with the nats of its own symbols when they are counted, float64.
Seen = Callable[[Window, np.ndarray], None]


@dataclass(frozen=True)
class Score:
    """The score of a model on a text.

    `nats` is the sum over all `symbols`; `bytes` is counted symbol by symbol, `text_bytes` from the joined text;
    `windows` lists what was counted, in order; `by_document` splits nats and bytes by document; `evidence` is kept for
    the audit. `journal` says what was learnt and when, empty for a fixed predictor.
    """

    nats: float
    symbols: int
    bytes: int
    text_bytes: int
    documents: int
    seq_len: int
    stride: int
    confidence: Confidence
    windows: tuple[Window, ...]
    by_document: DocumentScores = field(default=NO_DOCUMENTS, compare=False, repr=False)
    evidence: Evidence = field(default=NO_EVIDENCE, compare=False, repr=False)
    journal: tuple[Line, ...] = ()

    @property
    def bpb(self) -> float:
        """Bits per byte."""
        return self.nats / math.log(2.0) / self.bytes

    @property
    def nats_per_symbol(self) -> float:
        """Mean nats over the symbols counted."""
        return self.nats / self.symbols


def score_by_spec(
    scorer: Scorer,
    stream: SymbolStream,
    *,
    stride: int | None = None,
    progress: Progress | None = None,
    state: ScoreState | None = None,
) -> Score:
    """`score_stream` under the protocol of the scorer's own spec; `stride` replaces evaluation.stride_symbols."""
    model, evaluation = scorer.spec.model, scorer.spec.evaluation
    return score_stream(
        scorer,
        stream,
        seq_len=model.seq_len,
        stride=evaluation.stride_symbols if stride is None else stride,
        batch_rows=evaluation.batch_symbols // model.seq_len,
        confidence=evaluation.confidence,
        progress=progress,
        state=state,
    )


def score_stream(
    scorer: Scorer,
    stream: SymbolStream,
    *,
    seq_len: int,
    stride: int,
    batch_rows: int,
    confidence: float,
    progress: Progress | None = None,
    plan: WindowPlan = plan_windows,
    state: ScoreState | None = None,
) -> Score:
    """Score every symbol of a stream once, in windows of `seq_len` that advance by `stride` symbols.

    At most `batch_rows` windows are scored in one pass; all passes have one shape, so that a compiled
    engine compiles once. `progress` is called with (symbols counted, symbols in all). `plan` replaces the
    choice of windows (planted bugs). `state` keeps what was done, and the score resumes from it. Raises DataError for a
    stream without text and RunError where the scorer returns something that is not a number.
    """
    if stream.num_symbols == 0 or stream.num_bytes == 0:
        raise DataError(f"{stream.name}: no text to score")
    windows = plan(stream.num_symbols, seq_len, stride)
    rows = even_rows(len(windows), batch_rows)
    tally = Tally(stream, seq_len, kept_windows(windows, rows))
    passes = range(0, len(windows), rows)
    done, arrays = state.load(len(passes)) if state is not None else (0, {})
    if done:
        tally.load_state(arrays, windows[: done * rows])
    for number, first in enumerate(passes[done:], done + 1):
        score_together(scorer.score, windows[first : first + rows], rows, tally)
        if state is not None:
            state.offer(number, tally.save_state)
        if progress is not None:
            progress(tally.symbols, stream.num_symbols)
    return tally.result(stride, rows, confidence)


def score_together(
    score: Callable[[np.ndarray], np.ndarray], windows: Sequence[Window], rows: int, tally: Tally, width: int = 0
) -> None:
    """Score the windows of one pass, padded to `rows` of them, and count them. Of each the first `width` symbols are
    read, by default all."""
    nats = score(read_windows(tally.stream, windows, rows, width or tally.seq_len))
    for window, row in zip(windows, nats, strict=False):
        tally.add(window, row[window.count_start - window.start : window.count_stop - window.start])


def passes_shape(spec: Spec, stream: SymbolStream) -> tuple[int, int]:
    """(windows, symbols) of every pass that `score_by_spec` makes over a stream."""
    seq_len, evaluation = spec.model.seq_len, spec.evaluation
    windows = plan_windows(stream.num_symbols, seq_len, evaluation.stride_symbols)
    return even_rows(len(windows), evaluation.batch_symbols // seq_len), seq_len


def read_windows(stream: SymbolStream, windows: Sequence[Window], rows: int, seq_len: int) -> np.ndarray:
    """The windows' symbols, [rows, seq_len] int32, padded with zeros on the right and below."""
    x = np.zeros((rows, seq_len), np.int32)
    for row, window in enumerate(windows):
        count = min(seq_len, stream.num_symbols - window.start)
        x[row, :count] = stream.read(window.start, count)
    return x


class Tally:
    """Running sums of nats and bytes in float64, by document, and of nats by position in the window."""

    def __init__(
        self, stream: SymbolStream, seq_len: int, to_keep: frozenset[Window], seen: Seen | None = None
    ) -> None:
        self.stream, self.seq_len, self.to_keep, self.seen = stream, seq_len, to_keep, seen
        self.positions = PositionSums.empty(seq_len)
        self.kept: list[tuple[Window, np.ndarray]] = []
        self.windows: list[Window] = []
        self.symbols = 0
        self.documents_seen = np.zeros(stream.num_documents, bool)
        self.by_document = np.zeros((2, stream.num_documents))

    def add(self, window: Window, nats: np.ndarray) -> None:
        """Count the nats [count] of a window's own symbols."""
        start, count = window.count_start, len(nats)
        values = nats.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise RunError(
                f"{self.stream.name}: the score of symbol {start + bad[0]} is {values[bad[0]]}, not a number"
            )
        sizes = self.stream.byte_counts(start, count).astype(np.float64)
        documents = self.stream.document_ids(start, count)
        self.documents_seen[documents] = True
        np.add.at(self.by_document[0], documents, values)
        np.add.at(self.by_document[1], documents, sizes)
        self.positions.add(start - window.start, values)
        if window in self.to_keep:
            self.kept.append((window, values))
        self.windows.append(window)
        self.symbols += count
        if self.seen is not None:
            self.seen(window, values)

    def save_state(self) -> dict[str, np.ndarray]:
        """All sums, by name; the windows that were counted follow from the plan."""
        positions, kept = self.positions, [values for _, values in self.kept]
        return {
            "tally.by_document": self.by_document,
            "tally.documents_seen": self.documents_seen,
            "tally.positions": np.stack([positions.counts, positions.nats, positions.squares]),
            "tally.kept": np.concatenate([np.zeros(0), *kept]),
        }

    def load_state(self, arrays: Mapping[str, np.ndarray], windows: Sequence[Window]) -> None:
        """Take over the result of `save_state` after `windows` were counted."""
        self.by_document, self.documents_seen = arrays["tally.by_document"], arrays["tally.documents_seen"]
        counts, nats, squares = arrays["tally.positions"]
        self.positions = PositionSums(counts.astype(np.int64), nats, squares)
        self.windows = list(windows)
        self.symbols = sum(window.count_stop - window.count_start for window in windows)
        rest = arrays["tally.kept"]
        for window in windows:
            if window in self.to_keep:
                count = window.count_stop - window.count_start
                self.kept.append((window, rest[:count]))
                rest = rest[count:]

    def result(self, stride: int, rows: int, confidence: float) -> Score:
        """The score of what was counted, in windows that advance by `stride`, `rows` of them in a pass."""
        nats, sizes = self.by_document[:, self.documents_seen]
        return Score(
            nats=float(self.by_document[0].sum()),
            symbols=self.symbols,
            bytes=int(self.by_document[1].sum()),
            text_bytes=len(self.stream.text_bytes()),
            documents=len(nats),
            seq_len=self.seq_len,
            stride=stride,
            confidence=ratio_interval(nats, sizes, confidence),
            windows=tuple(self.windows),
            by_document=DocumentScores(nats, sizes.astype(np.int64)),
            evidence=Evidence(self.positions, tuple(self.kept), rows),
        )
