"""A split of a dataset of tokens as one long stream (docs/techniques.md 2.2), its bytes counted by the table.

The document start is a token of the shards. Two counts of the
text's bytes are independent of each other: `byte_counts` from the table, `text_bytes` from the tokenizer's decoder.
Legend: T tokens of a read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from data.sketch import Sketch, sketch_documents
from data.stream import Int32, Int64, JoinedShards, MakeSketch, document_ids, draw_documents
from data.token_bytes import TokenBytes
from shared.errors import DataError
from shared.spec import VocabularySpec

# Tokens that are decoded at once.
_DECODE_TOKENS = 1 << 18


class TokenStream:
    """Read-only random access to the tokens of one split: a SymbolStream, documented in `data.stream`."""

    def __init__(
        self,
        tokens: JoinedShards,
        document_starts: Int64,
        table: TokenBytes,
        vocabulary: VocabularySpec,
        *,
        name: str,
        sha256: str,
        num_bytes: int,
        make_sketch: MakeSketch = sketch_documents,
    ) -> None:
        """`tokens`: uint16, `document_starts`: int64 `[num_documents]`, the token at which each begins."""
        assert len(document_starts) > 0 and document_starts[0] == 0 and document_starts[-1] < tokens.length
        self.name = name
        self.sha256 = sha256
        self.vocabulary = vocabulary
        self.num_symbols = tokens.length
        self.num_bytes = num_bytes
        self.num_documents = len(document_starts)
        self._tokens = tokens
        self._starts = document_starts
        self._table = table
        self._text: bytes | None = None
        self._make_sketch = make_sketch

    @property
    def folds_case(self) -> bool:
        """Whether the tokenizer lost the capital letters of the text."""
        return self._table.folds_case

    def read(self, start: int, count: int) -> Int32:
        """Tokens [start, start + count) as int32 `[T]`. Raises IndexError outside the stream."""
        return self._tokens.read(start, count).astype(np.int32)

    def byte_counts(self, start: int, count: int) -> Int64:
        """Text bytes that each token of [start, start + count) stands for, int64 `[T]`."""
        begin = self._context_start(start)
        tokens = self._tokens.read(begin, start + count - begin)
        return self._table.counts(tokens, self._table.document_start)[start - begin :]

    def document_ids(self, start: int, count: int) -> Int64:
        if not 0 <= start <= start + count <= self.num_symbols:
            raise IndexError(f"tokens [{start}, {start + count}) of {self.name}, which has {self.num_symbols}")
        return document_ids(self._starts, start, count)

    def documents(self) -> Iterator[bytes]:
        first = 0
        while first < self.num_documents:
            begin = int(self._starts[first])
            last = max(first + 1, int(np.searchsorted(self._starts, begin + _DECODE_TOKENS)))
            stop = int(self._starts[last]) if last < self.num_documents else self.num_symbols
            tokens = self._tokens.read(begin, stop - begin)
            starts = self._starts[first:last]
            wrong = np.flatnonzero(tokens[starts - begin] != self._table.document_start)
            if len(wrong):
                raise DataError(f"{self.name}: document {first + wrong[0]} does not begin with the document start")
            yield from self._table.decode(np.split(tokens, starts[1:] - begin))
            first = last

    def check_accounting(self) -> None:
        """Raise DataError for a token outside the vocabulary, and where table, decoder and manifest disagree."""
        counted = 0
        for start in range(0, self.num_symbols, _DECODE_TOKENS):
            counted += int(self.byte_counts(start, min(_DECODE_TOKENS, self.num_symbols - start)).sum())
        decoded = sum(map(len, self.documents()))
        if not counted == decoded == self.num_bytes:
            raise DataError(
                f"{self.name}: {counted} bytes by its tokens, {decoded} decoded; the manifest says {self.num_bytes}"
            )

    def text_bytes(self) -> bytes:
        if self._text is None:
            self._text = b"".join(self.documents())
        return self._text

    def sketch(self) -> Sketch:
        return self._make_sketch(self.documents())

    def sample_documents(self, max_symbols: int, seed: int) -> TokenStream:
        """As in SymbolStream; a cut never falls between two byte pieces, which may be halves of a character."""
        if max_symbols >= self.num_symbols:
            return self
        if max_symbols < 2:
            raise DataError(f"{self.name}: a sample of {max_symbols} symbols holds no document; ask for more")
        lengths = np.diff(self._starts, append=self.num_symbols)
        drawn, room = draw_documents(lengths, max_symbols, seed)
        kept = lengths.copy()
        last = int(drawn[-1])
        if room < lengths[last]:
            kept[last] = self._cut(last, room, only=len(drawn) == 1)
        # A document start alone is not a document.
        chosen = np.sort(drawn[kept[drawn] > 1])
        pieces = [self._tokens.read(int(self._starts[index]), int(kept[index])) for index in chosen]
        starts = np.cumsum([0, *(len(piece) for piece in pieces[:-1])], dtype=np.int64)
        tokens = np.concatenate(pieces)
        return TokenStream(
            JoinedShards([tokens]),
            starts,
            self._table,
            self.vocabulary,
            name=f"{self.name} (sample)",
            sha256=hashlib.sha256(f"{self.sha256} sample {max_symbols} {seed} tokens".encode()).hexdigest(),
            num_bytes=int(self._table.counts(tokens, self._table.document_start).sum()),
        )

    def _context_start(self, start: int) -> int:
        """The first token of those on which the bytes of the one at `start` depend: the one before it, which may be a
        boundary, and while it is an escape of CaseOps those before that."""
        begin, span = start, 1
        while begin > 0:
            begin = max(0, start - span)
            others = np.flatnonzero(self._tokens.read(begin, start - begin) != self._table.escape)
            if len(others):
                return begin + int(others[-1])
            span *= 64
        return begin

    def _cut(self, document: int, num_tokens: int, only: bool) -> int:
        """The largest length up to `num_tokens` that no two byte pieces touch; if it is the `only` document, any."""
        head = self._table.is_byte_piece[self._tokens.read(int(self._starts[document]), num_tokens + 1)]
        length = num_tokens
        while length > 1 and head[length] and head[length - 1]:
            length -= 1
        return length if length > 1 or not only else num_tokens
