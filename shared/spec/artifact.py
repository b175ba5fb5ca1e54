"""The artifact section: how a model is packed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from shared.spec.base import Section

Bits = Literal[6, 8]


class ArtifactSpec(Section):
    """Quantisation and compression of the packed model (docs/techniques.md 11)."""

    matrix_bits: Bits = Field(6, description="bits of a code in matrices, where most of the bytes are: 6 or 8")
    embed_bits: Bits = Field(8, description="bits of a code in tables of symbols and in the matrices of gates: 6 or 8")
    head_bits: Bits = Field(8, description="bits of a code in output matrices that are not tied to a table: 6 or 8")
    brotli_quality: Annotated[int, Field(ge=0, le=11)] = Field(
        11, description="effort of brotli; 11 gives the smallest file and takes longest"
    )
    brotli_window: Annotated[int, Field(ge=10, le=24)] = Field(
        24, description="base-2 logarithm of the bytes that brotli searches for repetitions"
    )

    @classmethod
    def matrix_bits_of(cls, values: Any) -> int:
        """The matrix bits of an artifact section that is not checked yet; the default where they will be refused."""
        default: int = cls.model_fields["matrix_bits"].default
        bits = values.get("matrix_bits", default) if isinstance(values, dict) else default
        return int(bits) if bits in get_args(Bits) else default
