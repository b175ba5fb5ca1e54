"""Text as the symbols of a model and back, exactly or not at all."""

from __future__ import annotations

import numpy as np

from data.stream import Int32
from data.tokenizer import tokenizer_by_hash
from shared.errors import DataError, UserError
from shared.spec import VocabularySpec


def symbols_of(vocabulary: VocabularySpec, content: bytes, origin: str) -> Int32:
    """One document as symbols [T] int32, its document start in front where the vocabulary has one; no text has none.

    Raises UserError, with `origin`, for a text that the vocabulary's tokenizer does not restore.
    """
    if not content:
        return np.zeros(0, np.int32)
    if not vocabulary.reads_tokens:
        start = [] if vocabulary.document_start is None else [vocabulary.document_start]
        symbols = np.frombuffer(content, np.uint8).astype(np.int32) + np.int32(vocabulary.byte_offset)
        return np.concatenate([np.array(start, np.int32), symbols])
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{origin}: not UTF-8 at byte {error.start}, and the model reads tokens of text") from None
    (tokens,) = tokenizer_by_hash(vocabulary.tokenizer).encode([text])
    symbols = tokens.astype(np.int32)
    restored = bytes_of(vocabulary, symbols)
    if restored != content:
        pairs = zip(restored, content, strict=False)
        at = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(restored), len(content)))
        raise UserError(
            f"{origin}: the tokenizer of the model changes this text from byte {at} on; one of "
            "`bytetwin tokenizer train --normalisation identity` restores every text"
        )
    return symbols


def bytes_of(vocabulary: VocabularySpec, symbols: Int32) -> bytes:
    """The bytes of symbols [T], document after document without what stands between them.

    Raises DataError for symbols that no text has.
    """
    starts = np.flatnonzero(symbols == vocabulary.document_start)
    is_special = symbols < vocabulary.num_specials
    if np.count_nonzero(is_special) != len(starts):
        raise DataError(f"symbol {symbols[is_special][0]} stands for no text")
    if not vocabulary.reads_tokens:
        return (symbols[~is_special] - vocabulary.byte_offset).astype(np.uint8).tobytes()
    if len(symbols) == 0:
        return b""
    if not len(starts) or starts[0]:
        raise DataError("the first token is not a document start")
    documents = np.split(symbols.astype(np.uint16), starts[1:])
    return b"".join(tokenizer_by_hash(vocabulary.tokenizer).table.decode(documents))
