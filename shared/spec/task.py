"""The sections data, evaluation and budget: the texts, how they are scored, and the limit on bytes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared.spec.base import BelowOne, Positive, Section


class DataSpec(Section):
    """Datasets by name (`bytetwin data list`). `builtin` needs no network: text of the Python library."""

    train: str = Field("builtin", min_length=1, description="dataset whose `train` split is trained on")
    heldout: str = Field("builtin", min_length=1, description="dataset whose `heldout` split is only scored")
    selection_frac: BelowOne = Field(
        0.0,
        description="fraction at the end of the training text, cut at a document start, that is held back from "
        "training; choices between runs, such as the weights of a soup, are made on it",
    )


class EvaluationSpec(Section):
    """Scoring: windows of model.seq_len that advance by stride_symbols (docs/techniques.md 1.5)."""

    stride_symbols: Positive = Field(
        description="symbols by which scoring windows advance; smaller gives more context and costs more time; default "
        "model.seq_len, windows that do not overlap"
    )
    val_symbols: Positive = Field(131_072, description="symbols in the fixed sample of held-out text for validations")
    batch_symbols: Positive = Field(description="most symbols in one scoring pass; default training.batch_symbols")
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = Field(
        0.95, description="confidence level of the interval around a score, over its documents"
    )


class BudgetSpec(Section):
    """The limit on code plus artifact, decimal bytes (docs/techniques.md 1.1)."""

    total_bytes: Positive = Field(
        16_000_000, description="limit on artifact and code together; `bytetwin score` says whether a model fits"
    )
