"""The part of the evaluation section about learning from text that was scored (docs/techniques.md 14)."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.errors import nearest
from shared.spec.base import AboveZero, Batch, BelowOne, Patterns, Rate, Section, require
from shared.spec.lora import LoraTarget
from shared.spec.optimizer import OptimizerForm

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


class AdaptationSpec(Section):
    """How a model learns from the text that it is scored on, always after it was scored (docs/techniques.md 14).

    `score_first`: the text is cut into chunks; each is scored with the weights as they are, then learnt. The section
    may be the name of a published or proven setting in place of a table.
    """

    kind: Literal["none", "score_first"] = Field(
        "none", description="none: the model stays as it is; score_first: see the section"
    )
    chunk_symbols: Batch = Field(
        2048, description="symbols that are scored before they are learnt; no fewer than one window counts"
    )
    epochs: Epochs = Field(1, description="times that each chunk is learnt")
    batch_symbols: Batch = Field(65_536, description="most symbols in one step; a chunk is learnt in one or more")
    optimizer: OptimizerForm = Field("adam", description="adam, sgd with momentum, or muon, as optimizer.form")
    rate: Rate = Field(0.0003, description="peak rate of everything that learns")
    rate_shape: Literal["constant", "cosine"] = Field(
        "constant", description="the rate over the chunks of the text: constant, or half a cosine down to 0"
    )
    momentum: BelowOne = Field(0.9, description="momentum of sgd and muon")
    beta1: BelowOne = Field(0.9, description="adam: decay of the mean of gradients")
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

    @property
    def is_on(self) -> bool:
        """Whether anything is learnt."""
        return self.kind != "none"

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return named_adaptation(values)

    @model_validator(mode="after")
    def _check_kind(self) -> AdaptationSpec:
        section = "evaluation.adaptation"
        allowed = "adam or sgd with factors (lora.rank above 0)"
        require(self.optimizer != "muon" or not self.lora.rank, f"{section}.optimizer", self.optimizer, allowed)
        allowed = "0 with sgd, which has none"
        require(self.optimizer != "sgd" or not self.weight_decay, f"{section}.weight_decay", self.weight_decay, allowed)
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
        "rate": 0.003,
        "rate_shape": "cosine",
        "clip_norm": 1.0,
        "parameters": ["layers.*"],
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
