"""The vocabulary section: the alphabet of the model (docs/techniques.md 2.2)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.spec.base import Section, require

# Pad, document start, document end, unknown: ids 0 to 3 of byte260 and of every tokenizer.
NUM_SPECIALS = 4
DOCUMENT_START = 1
MAX_TOKENS = 65_536


class VocabularySpec(Section):
    """The alphabet of the model. `byte256`: the raw bytes. `byte260` (docs/techniques.md 2.2): four special
    symbols, then the bytes at offset 4; symbol 1 stands before every document. `tokens`: the pieces of a
    SentencePiece tokenizer, whose first four ids are the same special symbols; text of a dataset that
    `bytetwin tokenizer encode` made, with the same tokenizer."""

    kind: Literal["byte256", "byte260", "tokens"] = Field(
        "byte256",
        description="what a symbol is: a byte, a byte with document starts, or a token of a tokenizer. Tokens shorten "
        "the text and need a larger table; scores are per byte with each",
    )
    vocab_size: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = Field(
        0, description="tokens of the tokenizer; 0 with bytes, whose number the kind gives"
    )
    tokenizer: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        "", description="SHA-256 of the tokenizer's model; empty: that of data.train, filled in when a run starts"
    )

    @property
    def reads_tokens(self) -> bool:
        """Whether a symbol is a token of a tokenizer instead of a byte."""
        return self.kind == "tokens"

    @property
    def size(self) -> int:
        """Number of symbols V."""
        return self.vocab_size if self.reads_tokens else 256 + self.num_specials

    @property
    def num_specials(self) -> int:
        """Symbols at the start of the alphabet that stand for no text."""
        return 0 if self.kind == "byte256" else NUM_SPECIALS

    @property
    def byte_offset(self) -> int:
        """Symbol of byte 0; of bytes only."""
        assert not self.reads_tokens, "a token is not a byte"
        return self.num_specials

    @property
    def document_start(self) -> int | None:
        """Symbol that stands before every document, None where documents simply follow each other."""
        return None if self.kind == "byte256" else DOCUMENT_START

    @model_validator(mode="after")
    def _check_kind(self) -> VocabularySpec:
        if self.reads_tokens:
            allowed = f"above {NUM_SPECIALS} with kind 'tokens'"
            require(self.vocab_size > NUM_SPECIALS, "vocabulary.vocab_size", self.vocab_size, allowed)
            return self
        for field, value in (("vocab_size", self.vocab_size), ("tokenizer", self.tokenizer)):
            require(not value, f"vocabulary.{field}", value, f"left out with kind {self.kind!r}")
        return self
