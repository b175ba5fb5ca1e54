"""The artifact, evaluation and budget sections: how a model is packed and scored, and its limit."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from shared.spec.base import Positive, Section

Bits = Literal[6, 8]


class ArtifactSpec(Section):
    """Quantisation and compression of the packed model (docs/techniques.md 11)."""

    matrix_bits: Bits = 6
    embed_bits: Bits = 8
    head_bits: Bits = 8
    brotli_quality: Annotated[int, Field(ge=0, le=11)] = 11
    brotli_window: Annotated[int, Field(ge=10, le=24)] = 24

    @classmethod
    def matrix_bits_of(cls, values: Any) -> int:
        """The matrix bits of an artifact section that is not checked yet; the default where they will be refused."""
        default: int = cls.model_fields["matrix_bits"].default
        bits = values.get("matrix_bits", default) if isinstance(values, dict) else default
        return int(bits) if bits in get_args(Bits) else default


class EvaluationSpec(Section):
    """How text is scored: windows of model.seq_len that advance by stride_symbols (docs/techniques.md 1.5)."""

    stride_symbols: Positive = Field(description="default model.seq_len: windows do not overlap")
    val_symbols: Positive = Field(131_072, description="size of the deterministic validation subset")
    batch_symbols: Positive = Field(description="most symbols in one scoring pass; default training.batch_symbols")
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95


class BudgetSpec(Section):
    """The limit on code plus artifact, decimal bytes (docs/techniques.md 1.1)."""

    total_bytes: Positive = 16_000_000
