"""Auxiliary losses: minimised along with the symbols' nats, in training only (docs/techniques.md 8).

Parameters that only they read are trained, averaged and checkpointed like all others, but are no part of the model:
neither scores nor artifacts nor parameter counts contain them (shared.model.auxiliary).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from shared.spec.base import AboveZero, BelowOne, Fraction, Positive, Rate, Section, Size, require


class MultiSymbolSpec(Section):
    """Heads that predict further ahead: from the trunk output h[i], which has read patches < i, the symbols of patch
    i + k for k = 1 ... K, each position in the patch by its own linear map, softcapped like the model's own logits.

    Added is sum over k of weights[k - 1] times the mean nats over all i for which patch i + k is in the window. With
    patch_size 1 a patch is a symbol: the model's head gives x[t], the first of these heads x[t + 1].
    """

    weights: Annotated[tuple[AboveZero, ...], Field(strict=False)] = Field(
        (), description="weight of the nats at each distance k = 1, 2, ..; empty is off"
    )
    decay_end_frac: Fraction = Field(
        0.0, description="progress at which all weights, falling linearly from the start, reach 0; 0: they never fall"
    )

    def factor(self, progress: float) -> float:
        """The factor on all weights in a step that begins with this progress."""
        return max(0.0, 1.0 - progress / self.decay_end_frac) if self.decay_end_frac > 0.0 else 1.0


class EmbedPredictionSpec(Section):
    """JEPA on embeddings: linear maps z_k = W_k h[i] of the trunk output predict the input embeddings E of the next
    `symbols` symbols after the patches < i that it has read.

    Added is weight * mean over k = 1 ... symbols and i of ||z_k - E[x[i P + k - 1]]||^2, E a constant to derivatives.
    Published: it hurts, by 0.006 bits per byte at weight 0.01 and 0.024 at 0.1 (4 symbols).
    """

    weight: Rate = Field(0.0, description="weight of the squared distance from predicted to real embeddings; 0 is off")
    symbols: Annotated[int, Field(ge=1, le=16)] = Field(4, description="symbols K that are predicted ahead, 1 to 16")


class ChunkPredictionSpec(Section):
    """JEPA on latents of chunks of C patches, for every whole chunk j = 0, 1, ... that ends before the last patch.

    Latent: z_j = A2 silu(rms(A1 c_j)), c_j the mean of the trunk inputs jC + 1 ... jC + C, which hold patches
    jC ... jC + C - 1. Prediction: p_j = B2 silu(rms(B1 h[jC])) from the trunk output that has read the chunks before j
    and nothing else. Added is weight * (mean (p - z)^2 + regulariser_weight * SIGReg(z)).

    SIGReg is the Epps-Pulley statistic of the M latents of a window against a standard normal, the mean over
    `directions` unit vectors a, other ones in each step: with y_j = a . z_j it is mean over j, l of
    exp(-(y_j - y_l)^2 / 2) - sqrt(2) mean over j of exp(-y_j^2 / 4) + 1 / sqrt(3). That is the integral of
    |E exp(i t y) - exp(-t^2 / 2)|^2 against a normal density of t; it keeps latents from collapsing into one.
    Published: -0.010 bits per byte claimed at 0.001 from single runs; 14 runs found 0 there, +0.005 at 0.005, +0.018
    at 0.2.
    """

    weight: Rate = Field(0.0, description="weight of the whole loss, published 0.001 and less; 0 is off")
    chunk_patches: Positive = Field(8, description="patches in a chunk, C")
    hidden_dim: Size = Field(256, description="hidden units of the maps to latent and prediction, rows of A1, B1")
    latent_dim: Size = Field(256, description="width of a latent, rows of A2 and B2")
    regulariser_weight: Rate = Field(0.05, description="weight of SIGReg relative to the squared error")
    directions: Size = Field(
        16, description="random unit vectors that SIGReg projects on, drawn again in each step; more cost more"
    )


class CodeEntropySpec(Section):
    """Bits of the codes that the artifact will store, as its coder has them, softened so that they have a gradient.

    With the step s of each weight as the artifact has it, a weight is code k = -qmax ... qmax by the share
    softmax over k of -(w / s - k)^2 / temperature. Shares add up to counts n_ck in the contexts c of artifact.codec:
    matrices with brotli; bins of expected magnitude, the same for all matrices, with range. Added is weight times
    -sum n_ck log2(n_ck / sum over k of n_ck), divided by the number of matrix weights, in bits per weight. s and
    contexts are constants to derivatives. A step looks at every row_stride-th row of each matrix, beginning with row
    (step mod row_stride), so it costs 2 qmax + 1 exponentials for each of matrix weights / row_stride numbers. Its
    gradient turns round within one code: before a step moves weights by less than that it is noise. Published: an L1
    norm on the codes at most; weight decay does the same.
    """

    weight: Rate = Field(0.0, description="weight of the mean bits per weight, in nats per bit; 0 is off")
    temperature: AboveZero = Field(
        0.25,
        description="squared width of the soft assignment, in codes; smaller is closer to rounding, with a rougher "
        "gradient",
    )
    row_stride: Positive = Field(
        64, description="a step reads every row_stride-th row of each matrix; 1 reads all rows and costs most"
    )
    start_frac: BelowOne = Field(0.5, description="progress from which the entropy is part of the loss")


def check_auxiliary(
    multi: MultiSymbolSpec, embeds: EmbedPredictionSpec, chunks: ChunkPredictionSpec, patch_size: int, num_patches: int
) -> None:
    """Raise ValueError for a loss on symbols that no window holds."""
    allowed = f"fewer than the patches of a window ({num_patches})"
    require(len(multi.weights) < num_patches, "training.loss.multi_symbol.weights", multi.weights, allowed)
    on, window = embeds.weight > 0.0, patch_size * num_patches
    allowed = f"at most model.seq_len ({window})"
    require(not on or embeds.symbols <= window, "training.loss.embed_prediction.symbols", embeds.symbols, allowed)
    size = chunks.chunk_patches
    allowed = f"below the patches of a window ({num_patches})"
    require(chunks.weight == 0.0 or size < num_patches, "training.loss.chunk_prediction.chunk_patches", size, allowed)


def check_code_entropy(entropy: CodeEntropySpec, steps: int, driver: str) -> None:
    """Raise ValueError if it never acts."""
    reached = entropy.weight == 0.0 or driver == "time" or (steps - 1) / steps >= entropy.start_frac
    allowed = f"at most {(steps - 1) / steps}, with which the last of {steps} steps begins"
    require(reached, "training.loss.code_entropy.start_frac", entropy.start_frac, allowed)


def fit_auxiliary(loss: dict[str, Any], patch_size: int, num_patches: int, steps: int) -> None:
    """Change what acts in a loss section, in place, to windows of `num_patches` and a run of `steps`."""
    loss["multi_symbol"]["weights"] = loss["multi_symbol"]["weights"][: num_patches - 1]
    embeds, chunks, entropy = loss["embed_prediction"], loss["chunk_prediction"], loss["code_entropy"]
    if embeds["weight"]:
        embeds["symbols"] = min(embeds["symbols"], patch_size * num_patches)
    if chunks["weight"]:
        chunks["chunk_patches"] = min(chunks["chunk_patches"], num_patches - 1)
    entropy["start_frac"] = entropy["start_frac"] if (steps - 1) / steps >= entropy["start_frac"] else 0.0
