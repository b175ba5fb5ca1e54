"""The selection text: the last part of the training text, held back for model selection (docs/techniques.md 2.5).

Choices between runs (the weights of a soup) must not be made on the text that is scored afterwards.
`data.selection_frac` keeps this part out of training; training and selection cut it by the same rule.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from data.sketch import Sketch
from data.stream import SymbolStream, TrainingText
from shared.errors import DataError
from shared.spec import Spec, VocabularySpec

CHUNK_SYMBOLS = 1 << 20


@dataclass(frozen=True)
class TextPart:
    """Symbols [first, first + num_symbols) of a stream, whole documents, as a TrainingText."""

    stream: SymbolStream
    name: str
    first: int
    num_symbols: int
    num_bytes: int
    num_documents: int

    @property
    def vocabulary(self) -> VocabularySpec:
        return self.stream.vocabulary

    @property
    def sha256(self) -> str:
        """Hash of the whole text and of the position of this part in it, hexadecimal."""
        return hashlib.sha256(f"{self.stream.sha256} {self.first} {self.num_symbols}".encode()).hexdigest()

    def read(self, start: int, count: int) -> np.ndarray:
        if not 0 <= start <= start + count <= self.num_symbols:
            raise IndexError(f"symbols [{start}, {start + count}) of {self.name}, which has {self.num_symbols}")
        return self.stream.read(self.first + start, count)

    def sketch(self) -> Sketch:
        first_document = int(self.stream.document_ids(self.first, 1)[0])
        return self.stream.sketch().part(first_document, self.num_documents)


def training_part(stream: SymbolStream, selection_frac: float) -> TrainingText:
    """The text that trains: all of a training split, or all but its selection part. Raises DataError like that."""
    if selection_frac == 0.0:
        return stream
    reserved = selection_part(stream, selection_frac)
    return TextPart(
        stream,
        f"{stream.name} (without its selection part)",
        0,
        reserved.first,
        stream.num_bytes - reserved.num_bytes,
        stream.num_documents - reserved.num_documents,
    )


def selection_part(stream: SymbolStream, selection_frac: float) -> TextPart:
    """The last documents of a training split: those that begin in its last `selection_frac`, which is above 0.

    Raises DataError if none begins there.
    """
    cut = max(1, int(stream.num_symbols * (1.0 - selection_frac)))
    first = _next_document(stream, cut)
    count = stream.num_symbols - first
    if count == 0:
        raise DataError(f"{stream.name}: no document begins in its last {selection_frac:.2%}; reserve more of it")
    chunks = range(first, stream.num_symbols, CHUNK_SYMBOLS)
    num_bytes = sum(
        int(stream.byte_counts(start, min(CHUNK_SYMBOLS, stream.num_symbols - start)).sum()) for start in chunks
    )
    documents = stream.num_documents - int(stream.document_ids(first, 1)[0])
    return TextPart(stream, f"{stream.name} (selection part)", first, count, num_bytes, documents)


def selection_windows(spec: Spec, text: TrainingText) -> np.ndarray:
    """Windows of a selection text, evenly spread: [N, seq_len] int32, about evaluation.val_symbols in all.

    Raises DataError for a text shorter than one window.
    """
    seq_len = spec.model.seq_len
    whole = text.num_symbols // seq_len
    if whole == 0:
        raise DataError(
            f"{text.name}: {text.num_symbols} symbols are fewer than one window of model.seq_len = {seq_len}"
        )
    count = min(whole, max(1, spec.evaluation.val_symbols // seq_len))
    return np.stack([text.read(index * whole // count * seq_len, seq_len) for index in range(count)])


def _next_document(stream: SymbolStream, position: int) -> int:
    """The first position at or after `position` (above 0) where a document begins; else the end of the stream."""
    before = int(stream.document_ids(position - 1, 1)[0])
    low, high = position, stream.num_symbols
    while low < high:
        middle = (low + high) // 2
        if int(stream.document_ids(middle, 1)[0]) > before:
            high = middle
        else:
            low = middle + 1
    return low
