"""A SymbolStream over documents in memory, for tests of scoring."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from data.sketch import Sketch, sketch_documents
from shared.spec import VocabularySpec


class FakeStream:
    """Documents as they are given, in order; symbols as `vocabulary` says."""

    def __init__(self, documents: Sequence[bytes], vocabulary: VocabularySpec | None = None) -> None:
        vocabulary = vocabulary or VocabularySpec()
        self.texts, self.vocabulary, self.name = list(documents), vocabulary, "fake/heldout"
        start = [] if vocabulary.document_start is None else [vocabulary.document_start]
        parts = [start + [byte + vocabulary.byte_offset for byte in document] for document in documents]
        self.symbols = np.array([symbol for part in parts for symbol in part], np.int32)
        self.ids = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        self.sizes = (self.symbols >= vocabulary.byte_offset).astype(np.int64)
        self.num_symbols, self.num_documents = len(self.symbols), len(parts)
        self.num_bytes = sum(map(len, documents))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(b"\0".join(self.texts)).hexdigest()

    def read(self, start: int, count: int) -> np.ndarray:
        assert 0 <= start <= start + count <= self.num_symbols
        return self.symbols[start : start + count]

    def byte_counts(self, start: int, count: int) -> np.ndarray:
        return self.sizes[start : start + count]

    def document_ids(self, start: int, count: int) -> np.ndarray:
        return self.ids[start : start + count]

    def documents(self) -> Iterator[bytes]:
        return iter(self.texts)

    def text_bytes(self) -> bytes:
        return b"".join(self.texts)

    def sketch(self) -> Sketch:
        return sketch_documents(self.texts)

    def sample_documents(self, max_symbols: int, seed: int) -> FakeStream:
        order = np.random.default_rng(seed).permutation(self.num_documents)
        sizes = np.cumsum([np.sum(self.ids == document) for document in order])
        chosen = sorted(order[: int(np.sum(sizes <= max_symbols))].tolist())
        return FakeStream([self.texts[document] for document in chosen], self.vocabulary)
