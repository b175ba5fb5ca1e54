"""Token shards to documents of bytes, exactly and in bounded memory (docs/techniques.md 2.2).

The stream of a split is cut at the document start id, never at a fixed size, and a document may
continue in the next shard file. Every document's bytes are compared with the byte table (docs/techniques.md 1.2), and
their total with the table summed over the stream before it was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data.shards import TOKENS_VERSION, read_header, read_shard
from data.token_bytes import Int64, TokenBytes, Tokens
from shared.errors import DataError

BATCH_TOKENS = 1 << 20
# A stream without document starts would otherwise grow in memory to the size of all its shards.
MAX_DOCUMENT_TOKENS = 1 << 24


class TokenDocuments:
    """The documents of one split. Iterate once; afterwards the attributes say what was read.

    `num_tokens`, `total_bytes` (of the documents given out), `empty_documents` (left out), and
    `unfinished_tokens`: the length of a last document that was left out because its end is elsewhere.
    """

    def __init__(
        self,
        paths: list[Path],
        table: TokenBytes,
        *,
        ends_here: bool = True,
        advance: Callable[[int], None] = lambda _num_bytes: None,
    ) -> None:
        """`ends_here`: the last shard ends its last document. `advance` gets the number of bytes read."""
        self._paths = paths
        self._table = table
        self._ends_here = ends_here
        self._advance = advance
        self._num_documents = 0
        self._stream_bytes = 0
        self._previous = table.document_start
        self.num_tokens = 0
        self.total_bytes = 0
        self.empty_documents = 0
        self.unfinished_tokens = 0

    def __iter__(self) -> Iterator[bytes]:
        """UTF-8 text of every document that is whole and not empty. Raises DataError for damage of any kind."""
        start = self._table.document_start
        rest = np.empty(0, dtype=np.uint16)
        for path in self._paths:
            for tokens in self._batches(path):
                rest = np.concatenate([rest, tokens])
                starts = np.flatnonzero(rest == start)
                yield from self._decoded(rest[: starts[-1]], starts[:-1], path)
                rest = rest[starts[-1] :]
                if len(rest) > MAX_DOCUMENT_TOKENS:
                    raise DataError(
                        f"{path}: no document start ({start}) in {len(rest)} tokens; allowed are {MAX_DOCUMENT_TOKENS}"
                    )
        if self._ends_here:
            yield from self._decoded(rest, np.zeros(1, dtype=np.int64), self._paths[-1])
        else:
            self.unfinished_tokens = len(rest)
            self._stream_bytes -= int(self._table.counts(rest, start).sum())
        if self.total_bytes != self._stream_bytes:
            raise DataError(
                f"{self._paths[0].parent}: the documents have {self.total_bytes} bytes, "
                f"the byte table counts {self._stream_bytes}: nothing can be scored on this"
            )

    def _batches(self, path: Path) -> Iterator[Tokens]:
        """The tokens of one shard, piece by piece, counted and with their range checked."""
        version = read_header(path).version
        if version != TOKENS_VERSION:
            raise DataError(f"{path}: shard version {version}; token shards have version {TOKENS_VERSION}")
        shard = read_shard(path)
        for begin in range(0, len(shard), BATCH_TOKENS):
            tokens = np.array(shard[begin : begin + BATCH_TOKENS])
            largest = int(tokens.max())
            if largest >= self._table.vocab_size:
                raise DataError(
                    f"{path}: token {largest} at position {begin + int(tokens.argmax())}; "
                    f"the tokenizer has the ids 0 to {self._table.vocab_size - 1}: not the tokenizer of these shards"
                )
            if self.num_tokens == 0 and tokens[0] != self._table.document_start:
                raise DataError(
                    f"{path}: begins with token {tokens[0]}, not a document start ({self._table.document_start})"
                )
            self._stream_bytes += int(self._table.counts(tokens, self._previous).sum())
            self.num_tokens += len(tokens)
            self._previous = self._table.following(tokens, self._previous)
            yield tokens
            self._advance(tokens.nbytes)

    def _decoded(self, tokens: Tokens, starts: Int64, path: Path) -> Iterator[bytes]:
        """The documents that begin at `starts`, the last one up to the end of `tokens`, checked against the table."""
        if len(starts) == 0:
            return
        counts = np.add.reduceat(self._table.counts(tokens, self._table.document_start), starts)
        texts = self._table.decode(np.split(tokens, starts[1:]))
        for text, count in zip(texts, counts.tolist(), strict=True):
            if len(text) != count:
                raise DataError(
                    f"{path}: document {self._num_documents} of the split decodes to {len(text)} bytes, its tokens "
                    f"count {count}: damaged, or not the tokenizer of these shards"
                )
            self._num_documents += 1
            self.total_bytes += count
            if text:
                yield text
            else:
                self.empty_documents += 1
