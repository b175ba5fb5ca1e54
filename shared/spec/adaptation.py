"""The part of the evaluation section about learning from text that was scored (docs/techniques.md 14)."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.errors import nearest
from shared.spec.base import AboveZero, Batch, BelowOne, Fraction, Patterns, Positive, Rate, Section, require
from shared.spec.lora import LoraTarget
from shared.spec.optimizer import DECAYS, OptimizerForm

Epochs = Annotated[int, Field(gt=0, le=1000)]


class AdapterSpec(Section):
    """Low-rank factors that are learnt in place of weights, see model.lora: W + (alpha / rank) B A."""

    rank: Annotated[int, Field(ge=0, le=4096)] = Field(
        0, description="rank of the factors; 0: the weights themselves are learnt"
    )
    alpha: AboveZero = Field(16.0, description="the product of the factors is multiplied by alpha / rank")
    targets: Annotated[tuple[LoraTarget, ...], Field(strict=False)] = Field(
        ("q", "v"), description="matrices that have factors, as in model.lora.targets"
    )


class PhasesSpec(Section):
    """document: the first documents of the text are scored in phases; after each the weights themselves learn from all
    documents that were scored so far, by SGD with momentum."""

    count: Annotated[int, Field(ge=0, le=1000)] = Field(0, description="number of phases; 0 is off")
    documents: Positive = Field(2000, description="documents in all phases together, the first ones of the text")
    epochs: Epochs = Field(1, description="times that the weights learn from them after a phase")
    rate: Rate = Field(0.001, description="peak rate, falls with half a cosine over the steps of a phase")
    momentum: Fraction = Field(0.9, description="momentum of SGD")
    clip_norm: Rate = Field(1.0, description="limit on the norm of all gradients together; 0 is no limit")
    batch_symbols: Batch = Field(65_536, description="most symbols in one step")
    parameters: Patterns = Field(("*",), description="names of the parameters that learn")


class AdaptationSpec(Section):
    """How a model learns from the text that it is scored on, always after it was scored (docs/techniques.md 14).

    `score_first`: the text is cut into chunks; each is scored with the weights as they are, then learnt. `document`:
    every document is a text of its own, cut into chunks likewise, with low-rank factors of its own; documents are
    scored side by side in batches. The section may be the name of a published or proven setting in place of a table.
    """

    kind: Literal["none", "score_first", "document"] = Field(
        "none", description="none: the model stays as it is; score_first, document: see the section"
    )
    chunk_symbols: Batch = Field(
        1024, description="symbols that are scored before they are learnt; no fewer than one window counts"
    )
    epochs: Epochs = Field(1, description="times that each chunk is learnt")
    batch_symbols: Batch = Field(65_536, description="most symbols in one step; a chunk is learnt in one or more")
    optimizer: OptimizerForm = Field("adam", description="adam, sgd with momentum, or muon, as optimizer.form")
    rate: Rate = Field(0.001, description="peak rate of everything that learns")
    rate_shape: Literal["constant", "cosine"] = Field(
        "constant", description="the rate over the chunks of the text: constant, or half a cosine down to 0"
    )
    momentum: BelowOne = Field(0.9, description="momentum of sgd and muon")
    beta1: BelowOne = Field(0.0, description="adam: decay of the mean of gradients")
    beta2: BelowOne = Field(0.95, description="adam: decay of the mean of squared gradients")
    weight_decay: Rate = Field(0.0, description="decoupled decay of adam and muon, p -= rate decay p")
    clip_norm: Rate = Field(0.0, description="score_first: limit on the norm of all gradients together; 0 is none")
    parameters: Patterns = Field(
        ("*",), description="names of the parameters that learn, as training.parameters; with factors those alone"
    )
    lora: AdapterSpec = AdapterSpec()
    reset: Literal["never", "document"] = Field(
        "never", description="score_first: when all that was learnt is forgotten; document: where a document begins"
    )
    documents: Annotated[int, Field(gt=0, le=4096)] = Field(
        16, description="document: documents that are scored together, each with factors of its own"
    )
    warm_start: bool = Field(
        False,
        description="document: the first factor starts at the mean of those of the documents of the block before, and "
        "the second one at zero; a block is 8 * documents neighbours in the text, cut into batches",
    )
    phases: PhasesSpec = PhasesSpec()

    @property
    def is_on(self) -> bool:
        """Whether anything is learnt."""
        return self.kind != "none"

    def stride(self, seq_len: int, stride: int) -> int:
        """The symbols that a window counts which is not a text's first, for windows of `seq_len` that would advance by
        `stride`: those of a chunk where documents are scored side by side."""
        return min(self.chunk_symbols, seq_len) if self.kind == "document" else stride

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return named_adaptation(values)

    @model_validator(mode="after")
    def _check_kind(self) -> AdaptationSpec:
        section, document = "evaluation.adaptation", self.kind == "document"
        require(not document or self.lora.rank > 0, f"{section}.lora.rank", self.lora.rank, "above 0 with 'document'")
        shape = self.rate_shape
        require(not document or shape == "constant", f"{section}.rate_shape", shape, "constant with 'document'")
        require(not document or self.clip_norm == 0, f"{section}.clip_norm", self.clip_norm, "0 with 'document'")
        allowed = "adam or sgd with factors (lora.rank above 0)"
        require(self.optimizer != "muon" or not self.lora.rank, f"{section}.optimizer", self.optimizer, allowed)
        allowed, decays = f"0 with {self.optimizer}, which has none", bool(DECAYS[self.optimizer])
        require(decays or not self.weight_decay, f"{section}.weight_decay", self.weight_decay, allowed)
        for field, value, off in (
            ("warm_start", self.warm_start, False),
            ("phases.count", self.phases.count, 0),
        ):
            require(
                self.kind != "score_first" or value == off, f"{section}.{field}", value, f"{off} with 'score_first'"
            )
        require(not document or self.reset == "never", f"{section}.reset", self.reset, "never with 'document'")
        return self


# Settings by name: ours, then published ones with their figures in docs/techniques.md 14.
SETTINGS: dict[str, dict[str, Any]] = {
    "online": {"kind": "score_first"},
    "pr549": {
        "kind": "score_first",
        "chunk_symbols": 32_768,
        "epochs": 3,
        "optimizer": "sgd",
        "rate": 0.002,
        "rate_shape": "cosine",
        "clip_norm": 1.0,
    },
    "pr1431": {
        "kind": "score_first",
        "chunk_symbols": 131_072,
        "epochs": 20,
        "optimizer": "sgd",
        "batch_symbols": 131_072,
        "rate": 0.003,
        "rate_shape": "cosine",
        "clip_norm": 1.0,
        "parameters": ["layers.*"],
    },
    "document_lora": {
        "kind": "document",
        "chunk_symbols": 256,
        "rate": 0.01,
        "beta1": 0.9,
        "lora": {"rank": 8, "alpha": 8.0, "targets": ["q", "v"]},
        "documents": 64,
    },
    "pr1855": {
        "kind": "document",
        "chunk_symbols": 48,
        "rate": 0.0001,
        "beta1": 0.0,
        "beta2": 0.99,
        "weight_decay": 0.5,
        "lora": {"rank": 80, "alpha": 144.0, "targets": ["q", "k", "v", "o", "mlp"]},
        "documents": 64,
        "warm_start": True,
        "phases": {"count": 3, "documents": 2500, "batch_symbols": 32_768},
    },
}


def named_adaptation(values: Any) -> Any:
    """The section that a name stands for, and anything else as it is. Raises ValueError for an unknown name."""
    if not isinstance(values, str):
        return values
    if values not in SETTINGS:
        names = ", ".join(SETTINGS)
        raise ValueError(f"evaluation.adaptation = {values[:80]!r}{nearest(values, list(SETTINGS))}; settings: {names}")
    return copy.deepcopy(SETTINGS[values])
