"""The part of the training section about the loss whose gradient is followed (docs/techniques.md 8)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.spec.auxiliary import ChunkPredictionSpec, CodeEntropySpec, EmbedPredictionSpec, MultiSymbolSpec
from shared.spec.base import Rate, Section, require
from shared.spec.vocabulary import VocabularySpec


class LossSpec(Section):
    """The training loss in place of the mean nats: mean(w (1 - p)^focal_gamma nats) + z_weight mean(lse^2), to
    which auxiliary losses are added that exist in training only (shared.spec.auxiliary).

    p is the probability of the symbol that came and lse the logarithm of the sum of exp over the softcapped logits.
    Gradients are of this; what is reported, scored and compared as the loss stays plain nats.
    """

    z_weight: Rate = Field(0.0, description="weight of the squared log of the softmax's sum (z-loss); 0 is off")
    focal_gamma: Rate = Field(0.0, description="exponent of the factor (1 - p) on a symbol's nats; 0 is off, else >= 1")
    byte_weighted: bool = Field(
        False, description="each token weighs max(0.1, its bytes / the bytes of the training text's mean token)"
    )
    counts: Literal["all", "marked"] = Field(
        "all",
        description="symbols of a batch that count: all, or those that the batch marks, as adaptation to text does",
    )
    multi_symbol: MultiSymbolSpec = MultiSymbolSpec()
    embed_prediction: EmbedPredictionSpec = EmbedPredictionSpec()
    chunk_prediction: ChunkPredictionSpec = ChunkPredictionSpec()
    code_entropy: CodeEntropySpec = CodeEntropySpec()

    @property
    def is_plain(self) -> bool:
        """Whether it is the mean nats. Field by field, because torch.compile cannot follow a comparison of sections."""
        return not (self.z_weight or self.focal_gamma or self.byte_weighted or self.has_auxiliary)

    @property
    def has_auxiliary(self) -> bool:
        """Whether anything besides the nats of the symbols is minimised."""
        trunk_losses = self.multi_symbol.weights or self.embed_prediction.weight or self.chunk_prediction.weight
        return bool(trunk_losses or self.code_entropy.weight)


def check_loss(loss: LossSpec, vocabulary: VocabularySpec) -> None:
    """Raise ValueError for a loss whose gradient may be infinite, or that means nothing for the vocabulary."""
    require(loss.counts == "all" or loss.is_plain, "training.loss.counts", loss.counts, "all but for the plain loss")
    gamma = loss.focal_gamma
    allowed = "0 or at least 1, below which its slope is infinite for a symbol that is certain"
    require(gamma == 0.0 or gamma >= 1.0, "training.loss.focal_gamma", gamma, allowed)
    allowed = f"false with vocabulary.kind {vocabulary.kind!r}, whose symbols are all worth one byte"
    require(
        vocabulary.reads_tokens or not loss.byte_weighted, "training.loss.byte_weighted", loss.byte_weighted, allowed
    )
