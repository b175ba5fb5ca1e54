"""The part of the model section about hashed n-gram embeddings (docs/techniques.md 4.3)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.spec.base import Section, Size, require

MAX_NGRAM = 6
# Below 2^15, so that a multiplier times a row number fits in 31 bits.
MAX_ROWS, MAX_MULTIPLIER = 65_536, 32_767
Reader = Literal["trunk", "decoder"]


class NgramSpec(Section):
    """Embeddings of the last 2 ... `longest` symbols together, added to what the trunk or the decoder reads before its
    norm.

    An n-gram's row is Horner's h <- (h * multiplier + symbol) mod rows over its symbols, the oldest first; each n has
    a table of its own. The sum over n goes through one projection and a learned scale. A patch of the trunk takes the
    mean over its symbols; every symbol of an autoregressive decoder takes the n-grams that end before it.
    """

    rows: Annotated[int, Field(ge=0, le=MAX_ROWS)] = Field(
        0, description="rows of the table of each n; more rows collide less and take bytes; 0 is off"
    )
    dim: Size = Field(64, description="columns of the tables, projected to the width of their reader")
    longest: Annotated[int, Field(ge=2, le=MAX_NGRAM)] = Field(2, description="symbols of the longest n-grams, 2 to 6")
    multiplier: Annotated[int, Field(ge=1, le=MAX_MULTIPLIER)] = Field(
        1021, description="multiplier of the hash; 256 with 4096 rows is the published one for bytes"
    )

    reader: Reader = Field(
        "trunk", description="what reads them: each patch of the trunk, or each symbol of an autoregressive decoder"
    )

    @property
    def lengths(self) -> range:
        """The n of its tables; nothing where it is off."""
        return range(2, self.longest + 1) if self.rows else range(0)

    def lengths_for(self, reader: Reader) -> range:
        """The n that `reader` reads."""
        return self.lengths if self.reader == reader else range(0)


def check_ngram(ngram: NgramSpec, autoregressive: bool) -> None:
    """Raise ValueError for a table of one row, which cannot distinguish n-grams, and for a decoder that reads none."""
    require(ngram.rows != 1, "model.ngram.rows", ngram.rows, "0 or at least 2")
    read = ngram.reader == "trunk" or autoregressive
    require(read, "model.ngram.reader", ngram.reader, "trunk, unless model.decoder.kind is autoregressive")
