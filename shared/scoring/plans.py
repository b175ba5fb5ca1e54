"""Plans of adapted scores: the passes over a text, from its length, its document starts and the settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.stream import SymbolStream
from shared.scoring.passes import Pass, Span
from shared.scoring.windows import Window, even_rows, plan_windows
from shared.spec import Spec

# Document ids that are read at a time.
_IDS = 1 << 22
# Batches of documents in a block, from which the next block's first factors come.
BLOCK_BATCHES = 8


@dataclass(frozen=True)
class Plan:
    """`passes` in order; every pass is scored as `rows` windows of at most `seq_len` symbols, which advance by
    `stride`."""

    passes: Sequence[Pass]
    rows: int
    seq_len: int
    stride: int


def make_plan(spec: Spec, num_symbols: int, starts: np.ndarray, stride: int) -> Plan:
    """The passes over a text of `num_symbols` whose documents begin at `starts` [D], under the spec's adaptation and
    window, and a stride. Nothing of the text itself is needed, so a decoder can make it too."""
    settings, seq_len = spec.evaluation.adaptation, spec.model.seq_len
    most = max(1, spec.evaluation.batch_symbols // seq_len)
    if settings.kind == "document":
        rows = min(settings.documents, most, len(starts))
        passes = list(_document_passes(spec, np.append(starts, num_symbols), rows))
        return Plan(passes, rows, seq_len, settings.stride(seq_len, stride))
    windows = plan_windows(num_symbols, seq_len, stride)
    chunks = list(_chunks(windows, settings.chunk_symbols, starts if settings.reset == "document" else starts[:1]))
    rows = even_rows(max(map(len, chunks)), most)
    passes = list(_score_first_passes(chunks, rows, settings.reset == "document", starts))
    return Plan(passes, rows, seq_len, stride)


def _chunks(windows: Sequence[Window], symbols: int, starts: np.ndarray) -> Iterator[list[Window]]:
    """Windows by chunk of `symbols`, counted from the last of `starts` before: each belongs to the chunk of the first
    symbol that it counts."""
    counted = np.array([window.count_start for window in windows])
    section = np.searchsorted(starts, counted, side="right") - 1
    chunk = (counted - starts[section]) // symbols
    begins = np.flatnonzero((np.diff(section, prepend=-1) != 0) | (np.diff(chunk, prepend=-1) != 0)).tolist()
    for first, stop in zip(begins, [*begins[1:], len(windows)], strict=True):
        yield list(windows[first:stop])


def _score_first_passes(
    chunks: Sequence[Sequence[Window]], rows: int, resets: bool, starts: np.ndarray
) -> Iterator[Pass]:
    """The passes of each chunk; after the last it is learnt, unless all is forgotten before anything is scored."""
    counted = np.searchsorted(starts, [chunk[0].count_start for chunk in chunks], side="right")
    forgets = [*(np.diff(counted, prepend=counted[0]) > 0) & resets, True]
    for index, chunk in enumerate(chunks):
        span = Span(chunk[0].count_start, chunk[-1].count_stop)
        for first in range(0, len(chunk), rows):
            learns = first + rows >= len(chunk) and not forgets[index + 1]
            yield Pass(
                tuple(chunk[first : first + rows]),
                (span,) if learns else (),
                resets=bool(forgets[index]) and first == 0,
                progress=index / len(chunks),
            )


def _document_passes(spec: Spec, ends: np.ndarray, rows: int) -> Iterator[Pass]:
    """The passes over documents [ends[d], ends[d + 1]), `rows` side by side. What flows from one to another, in phases
    and by warm starts, flows between blocks of neighbours only, and so never from a later to an earlier one."""
    settings, num_documents = spec.evaluation.adaptation, len(ends) - 1
    first = 0
    for stop in _sections(spec, num_documents):
        size = BLOCK_BATCHES * rows if settings.warm_start else stop - first
        for begin in range(first, stop, size):
            block = np.arange(begin, min(begin + size, stop))
            passes = list(_block_passes(spec, ends, block, rows))
            passes[0] = replace(passes[0], inherits=settings.warm_start and begin > 0)
            in_phases = begin + size >= stop and stop < num_documents
            base = Span(0, int(ends[stop])) if in_phases else None
            passes[-1] = replace(passes[-1], base=base, closes=True)
            yield from passes
        first = stop


def _sections(spec: Spec, num_documents: int) -> list[int]:
    """The numbers of documents after which a phase ends, and all of them at last."""
    phases = spec.evaluation.adaptation.phases
    prefix = min(phases.documents, num_documents)
    ends = {prefix * (phase + 1) // phases.count for phase in range(phases.count)}
    return sorted({*ends, num_documents} - {0})


def _block_passes(spec: Spec, ends: np.ndarray, block: np.ndarray, rows: int) -> Iterator[Pass]:
    """The passes over a block of documents, the longest ones first, so that those of a batch end in order."""
    seq_len, size = spec.model.seq_len, spec.evaluation.adaptation.stride(spec.model.seq_len, 0)
    ordered = block[np.argsort(ends[block] - ends[block + 1], kind="stable")]
    for index in range(0, len(ordered), rows):
        batch = [(int(ends[document]), int(ends[document + 1])) for document in ordered[index : index + rows]]
        chunks = [-(-(stop - start) // size) for start, stop in batch]
        for chunk in range(chunks[0]):
            windows = []
            for (start, stop), count in zip(batch, chunks, strict=True):
                if chunk < count:
                    last = min(start + (chunk + 1) * size, stop)
                    windows.append(Window(max(start, last - seq_len), start + chunk * size, last))
            learning = sum(chunk + 1 < count for count in chunks)
            learnt = tuple(Span(window.count_start, window.count_stop) for window in windows[:learning])
            width = _width(spec, (chunk + 1) * size)
            yield Pass(tuple(windows), learnt, resets=chunk == 0, width=width, closes=False)


def _width(spec: Spec, needed: int) -> int:
    """The symbols that windows are read with where `needed` are: chunks times a power of two, so that few shapes are
    compiled; all of a window where its length changes the function."""
    model, size = spec.model, spec.evaluation.adaptation.stride(spec.model.seq_len, 0)
    if 0 < model.attention.ntk_positions < model.seq_len:
        return model.seq_len
    width = size
    while width < needed:
        width *= 2
    return min(model.seq_len, -(-width // model.patch_size) * model.patch_size)


def document_starts(stream: SymbolStream) -> np.ndarray:
    """The positions at which the documents of a stream begin, int64 [D]."""
    found, last = [], -1
    for start in range(0, stream.num_symbols, _IDS):
        ids = stream.document_ids(start, min(_IDS, stream.num_symbols - start))
        found.append(start + np.flatnonzero(np.diff(ids, prepend=last)))
        last = int(ids[-1])
    return np.concatenate(found).astype(np.int64)
