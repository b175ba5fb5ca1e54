"""The evaluation section: how a text is scored."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.spec.adaptation import AdaptationSpec
from shared.spec.base import Batch, Positive, Rate, Section, Window


class EvaluationSpec(Section):
    """Scoring: windows of model.seq_len that advance by stride_symbols (docs/techniques.md 1.5)."""

    stride_symbols: Window = Field(
        description="symbols by which scoring windows advance; smaller gives more context and costs more time; default "
        "model.seq_len, windows that do not overlap"
    )
    val_symbols: Positive = Field(131_072, description="symbols in the fixed sample of held-out text for validations")
    batch_symbols: Batch = Field(description="most symbols in one scoring pass; default training.batch_symbols")
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.95, description="confidence level of the interval around a score, over its documents"
    )
    time_limit_s: Rate = Field(
        0.0,
        description="seconds that the score of the held-out text may take by preflight's measurement; 0 is no limit",
    )
    # Not written where there is none: nothing that its section says has an effect.
    adaptation: AdaptationSpec = Field(AdaptationSpec(), exclude_if=lambda adaptation: not adaptation.is_on)
