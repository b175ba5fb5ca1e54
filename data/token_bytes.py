"""The text bytes of each token (docs/techniques.md 1.2), and the text that this definition gives.

The community scores bits per byte with a table: a control, unknown or unused id counts 0 bytes and is a
boundary, a byte piece counts 1, any other piece its UTF-8 length without a leading U+2581; that leading
space counts 1 more, unless the token before is a boundary. With CaseOps (docs/techniques.md 2.6) a sentinel counts 0,
or 3 where an escape before it makes it text. A document's text is defined here so that it
has exactly these bytes: the decoded pieces, without the one space that a first piece may begin with.
Legend: T tokens, V vocabulary size.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import caseops
from shared.errors import DataError

SPACE_MARK = "\u2581"

Tokens = npt.NDArray[np.uint16]
Int64 = npt.NDArray[np.int64]


class TokenBytes:
    """The byte table of a SentencePiece model, and the decoder that agrees with it.

    Attributes: `vocab_size`, `document_start` (the id before every document), `is_byte_piece` bool `[V]`,
    `folds_case`: whether the model writes capital letters small, and they are lost; `has_caseops`: whether the
    sentinels of CaseOps are tokens; `escape`: the id of one of them, -1 without.
    """

    def __init__(self, processor: Any) -> None:
        """`processor`: a SentencePieceProcessor with a beginning-of-sentence id and at least one plain piece."""
        self._processor = processor
        self.vocab_size = int(processor.vocab_size())
        self.document_start = int(processor.bos_id())
        self._base_bytes = np.zeros(self.vocab_size, dtype=np.int64)
        self._has_space = np.zeros(self.vocab_size, dtype=bool)
        self.is_byte_piece = np.zeros(self.vocab_size, dtype=bool)
        self._is_boundary = np.zeros(self.vocab_size, dtype=bool)
        self.folds_case = "A" not in processor.normalize("A")
        sentinels = [int(processor.piece_to_id(sentinel)) for sentinel in caseops.SENTINELS]
        self.has_caseops = not any(map(processor.is_unknown, sentinels))
        self.escape = sentinels[-1] if self.has_caseops else -1
        self._is_sentinel = np.zeros(self.vocab_size, dtype=bool)
        self._is_sentinel[sentinels] = self.has_caseops
        self._guard = -1
        for token in range(self.vocab_size):
            self._enter(token)
        self._guard_bytes = len(processor.id_to_piece(self._guard).encode()) if self._guard >= 0 else 0

    @property
    def can_decode(self) -> bool:
        """Whether the model marks document starts and has a piece of plain text."""
        return self.document_start >= 0 and self._guard >= 0

    def counts(self, tokens: Tokens, previous: int) -> Int64:
        """Text bytes of every token, int64 `[T]`; `tokens` uint16 `[T]`, `previous` the id before the first, or what
        `following` says of those before it."""
        before = np.empty(len(tokens), dtype=np.intp)
        before[:1] = previous
        before[1:] = tokens[:-1]
        counts = self._base_bytes[tokens] + (self._has_space[tokens] & ~self._is_boundary[before])
        if self.has_caseops:
            counts[self._is_escaped(tokens, previous)] = caseops.SENTINEL_BYTES
        return counts

    def following(self, tokens: Tokens, previous: int) -> int:
        """The id that counts as the previous one after tokens `[T]`, at least one: the last, but for an escape that an
        escape made text."""
        escaped = self.has_caseops and tokens[-1] == self.escape and self._is_escaped(tokens, previous)[-1]
        return self._guard if escaped else int(tokens[-1])

    def _is_escaped(self, tokens: Tokens, previous: int) -> npt.NDArray[np.bool_]:
        """Whether each token is a sentinel after an escape that is not escaped itself, bool `[T]`."""
        # Of a run of escapes every second one is text, so the length of the run before a token tells.
        joined = np.concatenate([[previous], tokens])
        index = np.arange(len(joined))
        last_other = np.maximum.accumulate(np.where(joined == self.escape, -1, index))
        run: Int64 = (index - last_other)[:-1]
        return self._is_sentinel[tokens] & (run % 2 == 1)

    def in_text(self) -> Int64:
        """Text bytes of every token of the vocabulary where it follows one that is not a boundary, int64 `[V]`."""
        return self._base_bytes + self._has_space

    def decode(self, documents: list[Tokens]) -> list[bytes]:
        """UTF-8 text of documents, each uint16 `[T]` with the document start as its first id.

        What SentencePiece does to leading spaces depends on the model: it drops all of them, or none. So the
        start is replaced by a plain piece, which leaves nothing leading; its bytes are cut off afterwards,
        and with them the one space that the table does not count.
        """
        guarded = []
        for tokens in documents:
            assert tokens[0] == self.document_start
            ids = tokens.tolist()
            ids[0] = self._guard
            guarded.append(ids)
        texts = []
        for tokens, text in zip(documents, self._processor.decode(guarded), strict=True):
            spaced = len(tokens) > 1 and bool(self._has_space[tokens[1]])
            content = text.encode()[self._guard_bytes + spaced :]
            texts.append(caseops.decode(content.decode()).encode() if self.has_caseops else content)
        return texts

    def _enter(self, token: int) -> None:
        processor = self._processor
        if processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
            self._is_boundary[token] = True
            return
        if processor.is_byte(token):
            self._base_bytes[token] = 1
            self.is_byte_piece[token] = True
            return
        if self._is_sentinel[token]:
            return
        piece = processor.id_to_piece(token)
        self._has_space[token] = piece.startswith(SPACE_MARK)
        self._base_bytes[token] = len(piece.removeprefix(SPACE_MARK).encode())
        if self._guard < 0 and piece and SPACE_MARK not in piece:
            self._guard = token


def load_processor(path: Path, content: bytes | None = None) -> Any:
    """The SentencePieceProcessor of a `.model` file, or of its `content`. Raises DataError if it is none."""
    try:
        sentencepiece = importlib.import_module("sentencepiece")
    except ImportError:
        raise DataError(f"{path}: reading tokens needs sentencepiece; install the extra: bytetwin[data]") from None
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes() if content is None else content)
    except OSError as error:
        raise DataError(f"{path}: cannot read the tokenizer ({error.strerror or error})") from None
    except (RuntimeError, TypeError, ValueError):
        raise DataError(f"{path}: not a SentencePiece model") from None


def has_space_piece(processor: Any) -> bool:
    """Whether a SentencePieceProcessor has a piece for a lone space."""
    return not processor.is_unknown(processor.piece_to_id(SPACE_MARK))


def load_token_bytes(path: Path) -> TokenBytes:
    """The byte table of a SentencePiece `.model` file. Raises DataError if it is not one or cannot be used."""
    table = TokenBytes(load_processor(path))
    if not table.can_decode:
        raise DataError(f"{path}: the tokenizer has no document start or no plain piece; its shards hold no documents")
    return table
