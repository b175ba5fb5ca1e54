"""Byte tables that published scores were computed with, and that count more than there is (docs/techniques.md 1.8)."""

from __future__ import annotations

from data.token_bytes import Int64, TokenBytes, Tokens


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
