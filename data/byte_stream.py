"""A split of a dataset of bytes as one long stream of symbols, read at any position without loading it.

Shards hold raw bytes. `byte256` reads them as they are, document after document. `byte260` reads
symbol = byte + 4 and puts the document-start symbol before every document while reading, so that one
dataset serves both (docs/techniques.md 2.2). Legend: T symbols of a read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from data.sketch import Sketch, sketch_documents
from data.stream import Int32, Int64, JoinedShards, MakeSketch, document_ids, draw_documents
from shared.errors import DataError
from shared.spec import VocabularySpec
from shared.spec.vocabulary import DOCUMENT_START


class ByteText(JoinedShards):
    """Several uint8 arrays read as one text."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the text."""
        return self.length


class ByteStream:
    """Read-only random access to the symbols of one split: a SymbolStream, documented in `data.stream`."""

    def __init__(
        self,
        text: ByteText,
        document_starts: Int64,
        vocabulary: VocabularySpec,
        name: str,
        sha256: str,
        make_sketch: MakeSketch = sketch_documents,
    ) -> None:
        """`document_starts`: int64 `[num_documents]`, the byte at which each begins; no document is empty."""
        assert len(document_starts) > 0 and document_starts[0] == 0 and document_starts[-1] < text.num_bytes
        self.name = name
        self.sha256 = sha256
        self.vocabulary = vocabulary
        self.num_bytes = text.num_bytes
        self.num_documents = len(document_starts)
        self._text = text
        self._make_sketch = make_sketch
        self._byte_starts = document_starts
        self._offset = vocabulary.byte_offset
        self._start_symbol = vocabulary.document_start
        if self._start_symbol is None:
            self._symbol_starts = document_starts
            self.num_symbols = self.num_bytes
        else:
            self._symbol_starts = document_starts + np.arange(self.num_documents)
            self.num_symbols = self.num_bytes + self.num_documents

    def read(self, start: int, count: int) -> Int32:
        """Symbols [start, start + count) as int32 `[T]`. Raises IndexError outside the stream."""
        specials, byte_start = self._specials(start, count)
        text = self._text.read(byte_start, count - len(specials))
        symbols = np.empty(count, np.int32)
        symbols[specials] = DOCUMENT_START
        end = 0
        for passed, special in enumerate([*specials.tolist(), count]):
            # The text between one document start and the next.
            np.add(text[end - passed : special - passed], self._offset, out=symbols[end:special], dtype=np.int32)
            end = special + 1
        return symbols

    def byte_counts(self, start: int, count: int) -> Int64:
        """Text bytes that each symbol of [start, start + count) stands for, int64 `[T]`: 1, or 0 for a special."""
        specials, _ = self._specials(start, count)
        counts = np.ones(count, dtype=np.int64)
        counts[specials] = 0
        return counts

    def document_ids(self, start: int, count: int) -> Int64:
        self._check(start, count)
        return document_ids(self._symbol_starts, start, count)

    def documents(self) -> Iterator[bytes]:
        return map(self.document, range(self.num_documents))

    def document(self, index: int) -> bytes:
        """The raw bytes of one document."""
        start = int(self._byte_starts[index])
        stop = int(self._byte_starts[index + 1]) if index + 1 < self.num_documents else self.num_bytes
        return self._text.read(start, stop - start).tobytes()

    def text_bytes(self) -> bytes:
        return self._text.read(0, self.num_bytes).tobytes()

    def sketch(self) -> Sketch:
        return self._make_sketch(self.documents())

    def sample_documents(self, max_symbols: int, seed: int) -> ByteStream:
        """As in SymbolStream; a cut never splits a UTF-8 character. The subset lives in memory."""
        if max_symbols >= self.num_symbols:
            return self
        specials = 0 if self._start_symbol is None else 1
        if max_symbols < 1 + specials:
            raise DataError(f"{self.name}: a sample of {max_symbols} symbols holds no document; ask for more")
        lengths = np.diff(self._byte_starts, append=self.num_bytes)
        drawn, room = draw_documents(lengths + specials, max_symbols, seed)
        kept = lengths.copy()
        last = int(drawn[-1])
        if room < lengths[last] + specials:
            kept[last] = self._cut(last, max(0, room - specials), at_least=int(len(drawn) == 1))
        chosen = np.sort(drawn[kept[drawn] > 0])
        pieces = [self._text.read(int(self._byte_starts[index]), int(kept[index])) for index in chosen]
        starts = np.cumsum([0, *(len(piece) for piece in pieces[:-1])], dtype=np.int64)
        digest = hashlib.sha256(f"{self.sha256} sample {max_symbols} {seed} {specials}".encode()).hexdigest()
        return ByteStream(ByteText([np.concatenate(pieces)]), starts, self.vocabulary, f"{self.name} (sample)", digest)

    def _specials(self, start: int, count: int) -> tuple[Int64, int]:
        """(positions of document-start symbols within the read, text byte at which the read begins)."""
        self._check(start, count)
        if self._start_symbol is None:
            return np.empty(0, np.int64), start
        # Two searches for one number each are quicker than one for two.
        first, last = self._symbol_starts.searchsorted(start), self._symbol_starts.searchsorted(start + count)
        return self._symbol_starts[first:last] - start, start - int(first)

    def _check(self, start: int, count: int) -> None:
        if not 0 <= start <= start + count <= self.num_symbols:
            raise IndexError(f"symbols [{start}, {start + count}) of {self.name}, which has {self.num_symbols}")

    def _cut(self, document: int, num_bytes: int, at_least: int) -> int:
        """The largest length up to `num_bytes` that ends between two UTF-8 characters, `at_least` excepted."""
        begin = int(self._byte_starts[document])
        head = self._text.read(begin, num_bytes + 1)
        length = num_bytes
        while length > 0 and (head[length] & 0xC0) == 0x80:
            length -= 1
        return length if length >= at_least else num_bytes
