"""The part of the model section about low-rank adapters of its matrices (docs/techniques.md 4.6)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.spec.base import AboveZero, Section, SizeOrZero, require
from shared.spec.mixers import MixerKind

LoraTarget = Literal["q", "k", "v", "o", "mlp", "head"]


class LoraSpec(Section):
    """LoRA: a matrix W [out, in] acts as W + (alpha / rank) B A, with A [rank, in] and B [out, rank] trained by Adam
    (optimizer.adapter_lr).

    A starts uniform in +-1/sqrt(in) and B at zero: the model starts as the one without adapters, B learns from the
    first step and A from the second. An artifact stores the factors next to W.
    """

    rank: SizeOrZero = Field(0, description="rank of the adapters; 0 is off")
    alpha: AboveZero = Field(16.0, description="the product of the factors is multiplied by alpha / rank")
    targets: Annotated[tuple[LoraTarget, ...], Field(strict=False)] = Field(
        ("q", "v"),
        description="matrices that have an adapter. q, k, v, o, mlp: in every layer of the trunk that has them, mlp "
        "being all matrices of the MLP; head: an output matrix that is not tied (published for one document each: "
        "rank 8; q, v, head)",
    )
    rows: SizeOrZero = Field(
        0, description="rows of a batch with factors of their own; set by adaptation to documents, in a spec it is 0"
    )


def check_lora(lora: LoraSpec, has_head: bool, narrowest: int, mixers: tuple[MixerKind, ...]) -> None:
    """Raise ValueError for adapters of a missing head or projection, or as large as the matrix they adapt."""
    if not lora.rank:
        return
    targets = list(lora.targets)
    allowed = "without 'head', unless tie_embeddings is false and the decoder is linear or autoregressive"
    require("head" not in targets or has_head, "model.lora.targets", targets, allowed)
    require(0 < len(set(targets)) == len(targets), "model.lora.targets", targets, "one or more, without repetition")
    has_any = not mixers or set(mixers) != {"mamba2"} or not {"o", "mlp", "head"}.isdisjoint(targets)
    allowed = "with one of 'o', 'mlp', 'head', where every layer is a mamba2, which has no q, k and v"
    require(has_any, "model.lora.targets", targets, allowed)
    require(lora.rank < narrowest, "model.lora.rank", lora.rank, f"below the sides of its matrices ({narrowest})")
