"""The artifact section: how a model is packed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from shared.spec.base import Section
from shared.spec.calibration import CalibrationSpec

Bits = Literal[6, 8]
Method = Literal["row_max"]


class QuantiserSpec(Section):
    """Storage of a class of tensors. row_max: symmetric codes, one float16 scale per row by its largest weight."""

    method: Method = Field("row_max", description="how weights become codes: row_max")
    bits: Bits = Field(8, description="bits of a code: 6 or 8")


class MatrixQuantiserSpec(QuantiserSpec):
    """The same for matrices, which take fewer bits."""

    bits: Bits = Field(6, description="bits of a code: 6 or 8")


class ArtifactSpec(Section):
    """Quantisation and compression of the packed model (docs/techniques.md 11)."""

    matrix: MatrixQuantiserSpec = Field(MatrixQuantiserSpec(), description="matrices, where most of the bytes are")
    embed: QuantiserSpec = Field(QuantiserSpec(), description="tables of symbols, and the matrices of gates")
    head: QuantiserSpec = Field(QuantiserSpec(), description="output matrices that are not tied to a table")
    calibration: CalibrationSpec = CalibrationSpec()
    brotli_quality: Annotated[int, Field(ge=0, le=11)] = Field(
        11, description="effort of brotli; 11 gives the smallest file and takes longest"
    )
    brotli_window: Annotated[int, Field(ge=10, le=24)] = Field(
        24, description="base-2 logarithm of the bytes that brotli searches for repetitions"
    )

    @classmethod
    def matrix_bits_of(cls, values: Any) -> int:
        """The matrix bits of an artifact section that is not checked yet; the default where they will be refused."""
        matrix = values.get("matrix") if isinstance(values, dict) else None
        default: int = MatrixQuantiserSpec.model_fields["bits"].default
        bits = matrix.get("bits", default) if isinstance(matrix, dict) else default
        return int(bits) if bits in get_args(Bits) else default
