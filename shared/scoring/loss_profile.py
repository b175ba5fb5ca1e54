"""Where the loss of a model is: by class of byte, by position in patch and window, in its costliest symbols, and in
single documents (docs/techniques.md 12.7).

Measured on windows of the plan by which the text is scored, so every figure is one of those that the score sums.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.stream import SymbolStream
from data.tokenizer import tokenizer_by_hash
from shared.engine.protocol import Scorer
from shared.errors import DataError
from shared.scoring.bits_per_byte import Progress, read_windows
from shared.scoring.documents import DocumentScores
from shared.scoring.windows import Window, plan_windows
from shared.spec import VocabularySpec

TOP_FRACS = (0.01, 0.05, 0.10)
WINDOW_BINS = 32
# The beginning of a document, as long as a reader looks at it.
EXCERPT_SYMBOLS = 600
# The score of a shorter document is mostly chance.
SHORTEST_DOCUMENT_BYTES = 400

CLASSES = (
    "lower-case letters",
    "upper-case letters",
    "digits",
    "spaces",
    "line ends",
    "punctuation and markup",
    "UTF-8, first byte",
    "UTF-8, later bytes",
    "control characters",
    "document starts",
)
_NAMED = {
    "lower-case letters": b"abcdefghijklmnopqrstuvwxyz",
    "upper-case letters": b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "digits": b"0123456789",
    "spaces": b" \t",
    "line ends": b"\n\r",
    "UTF-8, first byte": bytes(range(0xC0, 0x100)),
    "UTF-8, later bytes": bytes(range(0x80, 0xC0)),
    "control characters": bytes([*range(9), 11, 12, *range(14, 32), 127]),
}
_CLASS_OF_BYTE = np.full(256, CLASSES.index("punctuation and markup"))
for _name, _bytes in _NAMED.items():
    _CLASS_OF_BYTE[list(_bytes)] = CLASSES.index(_name)


@dataclass(frozen=True)
class Part:
    """Some of the symbols that were measured: their number, bytes of text and sum of nats."""

    name: str
    symbols: int
    bytes: int
    nats: float

    @property
    def bpb(self) -> float | None:
        """Bits per byte; None for symbols that stand for no text."""
        return self.nats / math.log(2.0) / self.bytes if self.bytes else None


@dataclass(frozen=True)
class Excerpt:
    """The beginning of document `index`, which has `bpb` bits per byte in all `num_bytes` that were scored of it.
    `pieces` are (text bytes, nats) of each symbol; with CaseOps capitals are written small."""

    index: int
    bpb: float
    num_bytes: int
    pieces: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class LossProfile:
    """`total` is all that was measured of `text`; `classes`, `patch` and `window` each divide it. `top` has the share
    of all nats that the costliest symbols carry, by their share of the symbols."""

    text: str
    total: Part
    classes: tuple[Part, ...]
    patch: tuple[Part, ...]
    window: tuple[Part, ...]
    top: tuple[tuple[float, float], ...]
    worst: tuple[Excerpt, ...]
    best: tuple[Excerpt, ...]

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values, without the excerpts."""
        parts = {name: [asdict(part) for part in getattr(self, name)] for name in ("classes", "patch", "window")}
        top = [{"symbols_frac": frac, "nats_frac": share} for frac, share in self.top]
        return {"text": self.text, "total": asdict(self.total), **parts, "top": top}


@dataclass(frozen=True)
class _Measured:
    """What was scored, [N] each: symbols int32, nats float64, bytes, positions in the window and documents int64."""

    symbols: np.ndarray
    nats: np.ndarray
    sizes: np.ndarray
    positions: np.ndarray
    documents: np.ndarray


def profile_loss(
    scorer: Scorer,
    stream: SymbolStream,
    *,
    max_symbols: int,
    num_excerpts: int = 2,
    documents: DocumentScores | None = None,
    progress: Progress | None = None,
) -> LossProfile:
    """The profile of a scorer on windows at equal distances from all over `stream`, about `max_symbols` in all.

    The worst and best documents are those of `documents`, the scores of all documents of the stream, or by default of
    the windows that were measured. Raises DataError for a stream without text.
    """
    if not stream.num_symbols or not stream.num_bytes:
        raise DataError(f"{stream.name}: no text to score")
    model, evaluation = scorer.spec.model, scorer.spec.evaluation
    plan = plan_windows(stream.num_symbols, model.seq_len, evaluation.stride_symbols)
    count = min(len(plan), max(1, max_symbols // model.seq_len))
    chosen = [plan[index] for index in np.linspace(0, len(plan) - 1, count).round().astype(int)]
    rows = min(count, max(1, evaluation.batch_symbols // model.seq_len))
    read = _Reader(scorer, stream, rows, progress)
    sample = read(chosen)
    worst, best = _extremes(sample, documents, num_excerpts)
    ranges = {index: _document_range(stream, index) for index, _, _ in (*worst, *best)}
    wanted = {window for first, last in ranges.values() for window in _covering(plan, first, last)}
    by_window = read.by_window(sorted(wanted, key=lambda window: window.start))

    def excerpt(index: int, bpb: float, size: int) -> Excerpt:
        return Excerpt(index, bpb, size, _pieces(stream, *ranges[index], by_window))

    patch = sample.positions % model.patch_size
    bins = min(WINDOW_BINS, model.seq_len)
    edges = [index * model.seq_len // bins for index in range(bins + 1)]
    window_bins = np.searchsorted(edges, sample.positions, side="right") - 1
    return LossProfile(
        stream.name,
        Part("all", len(sample.nats), int(sample.sizes.sum()), float(sample.nats.sum())),
        _parts(sample, _class_of_symbols(stream.vocabulary, sample.symbols), CLASSES),
        _parts(sample, patch, [str(index + 1) for index in range(model.patch_size)]),
        _parts(sample, window_bins, [f"{start} to {stop - 1}" for start, stop in itertools.pairwise(edges)]),
        tuple((frac, top_share(sample.nats, frac)) for frac in TOP_FRACS),
        tuple(excerpt(*found) for found in worst),
        tuple(excerpt(*found) for found in best),
    )


def top_share(nats: np.ndarray, frac: float) -> float:
    """Share of the sum of nats [N] >= 0 that the costliest ceil(frac N) symbols carry; 0 where the sum is 0."""
    total = float(nats.sum())
    ordered = np.sort(nats)[::-1]
    return float(ordered[: math.ceil(frac * len(nats))].sum()) / total if total > 0.0 else 0.0


def symbol_bytes(vocabulary: VocabularySpec, symbols: Sequence[int]) -> list[bytes]:
    """The text bytes of each symbol in a text that has begun; none for a special one. Raises DataError if the
    tokenizer is missing."""
    if vocabulary.reads_tokens:
        piece: Callable[[int], bytes] = tokenizer_by_hash(vocabulary.tokenizer).piece
        return [piece(symbol) for symbol in symbols]
    offset = vocabulary.byte_offset
    return [bytes([symbol - offset]) if symbol >= offset else b"" for symbol in symbols]


class _Reader:
    """Scores windows of a stream in passes of one shape."""

    def __init__(self, scorer: Scorer, stream: SymbolStream, rows: int, progress: Progress | None) -> None:
        self.scorer, self.stream, self.rows, self.progress = scorer, stream, rows, progress

    def by_window(self, windows: Sequence[Window]) -> dict[Window, np.ndarray]:
        """The nats [counted] float64 of each window's own symbols."""
        found, seq_len = {}, self.scorer.spec.model.seq_len
        for first in range(0, len(windows), self.rows):
            group = windows[first : first + self.rows]
            nats = self.scorer.score(read_windows(self.stream, group, self.rows, seq_len))
            for window, row in zip(group, nats, strict=False):
                counted = row[window.count_start - window.start : window.count_stop - window.start]
                found[window] = counted.astype(np.float64)
            if self.progress is not None:
                self.progress(min(first + self.rows, len(windows)) * seq_len, len(windows) * seq_len)
        return found

    def __call__(self, windows: Sequence[Window]) -> _Measured:
        nats, stream = self.by_window(windows), self.stream
        spans = [(window.count_start, window.count_stop - window.count_start) for window in windows]
        return _Measured(
            np.concatenate([stream.read(*span) for span in spans]),
            np.concatenate([nats[window] for window in windows]),
            np.concatenate([stream.byte_counts(*span) for span in spans]),
            np.concatenate([np.arange(each.count_start, each.count_stop) - each.start for each in windows]),
            np.concatenate([stream.document_ids(*span) for span in spans]),
        )


def _parts(sample: _Measured, groups: np.ndarray, names: Sequence[str]) -> tuple[Part, ...]:
    """The parts that have symbols, in order; `groups` [N] are indices of names."""
    symbols, sizes, nats = (
        np.bincount(groups, weights, minlength=len(names)) for weights in (None, sample.sizes, sample.nats)
    )
    return tuple(
        Part(name, int(symbols[index]), int(sizes[index]), float(nats[index]))
        for index, name in enumerate(names)
        if symbols[index]
    )


def _class_of_symbols(vocabulary: VocabularySpec, symbols: np.ndarray) -> np.ndarray:
    """Index in CLASSES of each symbol [N]: that of its first byte which is no space, if it has one."""
    unique, where = np.unique(symbols, return_inverse=True)
    classes = []
    for content in symbol_bytes(vocabulary, unique.tolist()):
        letters = content.lstrip(b" ") or content
        classes.append(int(_CLASS_OF_BYTE[letters[0]]) if letters else CLASSES.index("document starts"))
    return np.array(classes, np.int64)[where]


def _extremes(
    sample: _Measured, documents: DocumentScores | None, count: int
) -> tuple[list[tuple[int, float, int]], list[tuple[int, float, int]]]:
    """(index, bits per byte, bytes) of the worst documents and of the best ones, none of them twice."""
    if documents is None:
        indices, where = np.unique(sample.documents, return_inverse=True)
        sizes, nats = np.bincount(where, sample.sizes), np.bincount(where, sample.nats)
    else:
        indices, sizes, nats = np.arange(len(documents.bytes)), documents.bytes, documents.nats
    is_long = sizes >= min(SHORTEST_DOCUMENT_BYTES, sizes.max())
    indices, sizes, bpb = indices[is_long], sizes[is_long], (nats / math.log(2.0) / np.maximum(sizes, 1))[is_long]
    order = np.argsort(-bpb, kind="stable")
    found = [(int(indices[index]), float(bpb[index]), int(sizes[index])) for index in order]
    worst = found[:count]
    return worst, list(reversed(found[len(worst) :][-count:])) if count else []


def _document_range(stream: SymbolStream, index: int) -> tuple[int, int]:
    """Symbols [first, last) of the beginning of a document, found without reading the text."""
    positions = range(stream.num_symbols)
    first = bisect.bisect_left(positions, index, key=lambda position: int(stream.document_ids(position, 1)[0]))
    ids = stream.document_ids(first, min(EXCERPT_SYMBOLS, stream.num_symbols - first))
    return first, first + int(np.count_nonzero(ids == index))


def _covering(plan: Sequence[Window], first: int, last: int) -> Sequence[Window]:
    """The windows that count a symbol of [first, last), first < last."""
    start = bisect.bisect_right(plan, first, key=lambda window: window.count_stop)
    return plan[start : bisect.bisect_left(plan, last, key=lambda window: window.count_start)]


def _pieces(
    stream: SymbolStream, first: int, last: int, by_window: dict[Window, np.ndarray]
) -> tuple[tuple[bytes, float], ...]:
    """(text bytes, nats) of the symbols [first, last)."""
    nats = np.zeros(last - first)
    for window, values in by_window.items():
        start, stop = max(first, window.count_start), min(last, window.count_stop)
        if start < stop:
            nats[start - first : stop - first] = values[start - window.count_start : stop - window.count_start]
    texts = symbol_bytes(stream.vocabulary, stream.read(first, last - first).tolist())
    # A token that follows a document start stands for no space, a sentinel of CaseOps for nothing.
    sizes = stream.byte_counts(first, last - first).tolist()
    contents = [text[max(0, len(text) - size) :] for text, size in zip(texts, sizes, strict=True)]
    return tuple(zip(contents, nats.tolist(), strict=True))
