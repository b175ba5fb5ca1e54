"""The artifact, evaluation and budget sections: how a model is packed and scored, and its limit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.spec.base import Positive, Section


class ArtifactSpec(Section):
    """Quantisation and compression of the packed model (FEATURES 3.10, 3.11)."""

    matrix_bits: Literal[6, 8] = 6
    embed_bits: Literal[6, 8] = 8
    head_bits: Literal[6, 8] = 8
    brotli_quality: Annotated[int, Field(ge=0, le=11)] = 11
    brotli_window: Annotated[int, Field(ge=10, le=24)] = 24


class EvaluationSpec(Section):
    """How text is scored: windows of model.seq_len that advance by stride_symbols (FEATURES 3.12)."""

    stride_symbols: Positive = Field(description="default model.seq_len: windows do not overlap")
    val_symbols: Positive = Field(131_072, description="size of the deterministic validation subset")
    batch_symbols: Positive = Field(description="most symbols in one scoring pass; default training.batch_symbols")
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95


class BudgetSpec(Section):
    """The limit on code plus artifact, decimal bytes (FEATURES 1.1)."""

    total_bytes: Positive = 16_000_000
