"""Byte tables that published scores were computed with, and that count more than there is (docs/techniques.md 1.8); a
tokenizer whose text has less in it."""

from __future__ import annotations

import numpy as np
import sentencepiece

from data.stream import JoinedShards
from data.token_bytes import Int64, TokenBytes, Tokens
from data.token_stream import TokenStream
from shared.spec import VocabularySpec
from shared.spec.vocabulary import DOCUMENT_START
from tests.token_text import trained_model


class SpaceInPieceAndBefore(TokenBytes):
    """The leading space is left in the piece's length and added again: bytes x 1.17 in the claims."""

    def counts(self, tokens: Tokens, previous: int) -> Int64:
        return super().counts(tokens, previous) + self._has_space[tokens]


class FallbackBytesAsThree(TokenBytes):
    """A byte piece is looked up as a character of three bytes."""

    def counts(self, tokens: Tokens, previous: int) -> Int64:
        return super().counts(tokens, previous) + 2 * self.is_byte_piece[tokens]


class SpecialsAsText(TokenBytes):
    """The document start counts its own spelling, `<s>`."""

    def counts(self, tokens: Tokens, previous: int) -> Int64:
        return super().counts(tokens, previous) + 3 * (tokens == self.document_start)


class SentinelsAsText(TokenBytes):
    """The sentinels of CaseOps count the bytes of their own characters."""

    def counts(self, tokens: Tokens, previous: int) -> Int64:
        return super().counts(tokens, previous) + 3 * self._is_sentinel[tokens]


def folded_case(text: str) -> TokenStream:
    """One document in the tokens of a model that writes all letters small first: SentencePiece's `nmt_nfkc_cf`."""
    content = trained_model(text, normalisation="nmt_nfkc_cf", size=300)  # type: ignore[arg-type]
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    tokens = np.array([DOCUMENT_START, *processor.encode(text)], np.uint16)
    return TokenStream(
        JoinedShards([tokens]),
        np.zeros(1, np.int64),
        TokenBytes(processor),
        VocabularySpec(kind="tokens", vocab_size=processor.vocab_size()),
        name="toy/heldout",
        sha256="ab" * 32,
        num_bytes=len(text),
    )
