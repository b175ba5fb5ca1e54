"""The model section: with the vocabulary, what determines the function (docs/techniques.md 3, 4)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.spec.attention import AttentionSpec, SmearGate, check_attention
from shared.spec.base import AboveZero, Fraction, Layers, Section, Size, Window, require_all
from shared.spec.depth import LoopSpec, ParallelSpec, check_depth
from shared.spec.initial import EmbedInit, EmbedRank, MatrixInit, ResidMixInit, check_initial
from shared.spec.lora import LoraSpec, check_lora
from shared.spec.mixers import MIXERS_DESCRIPTION, MixerKind, check_mixers
from shared.spec.ngram import NgramSpec, check_ngram

DecoderKind = Literal["autoregressive", "mlp", "linear", "experts"]


class DecoderSpec(Section):
    """How a trunk output becomes the distributions of the P symbols of one patch (docs/techniques.md 4.2).

    `autoregressive`: a local causal transformer over the patch, MegaByte form; with `context` above 1 its
    input is a projection of the last symbols instead of the last one alone, also across patches. `mlp`: one
    two-layer head per position, no context inside the patch. `linear`: one linear map to P * V logits;
    with patch_size 1 it is the ordinary language-model head. `experts`: for position p of the patch the sum of
    `num_experts` linear maps of z = h + e[p], weighed by softmax(R z), e and R learned.
    """

    kind: DecoderKind = Field(
        description="how the symbols of a patch are predicted (see the section); default linear with patch_size "
        "1, else autoregressive"
    )
    dim: Size = Field(128, description="width of the local transformer, or hidden units of a head")
    num_layers: Layers = Field(1, description="layers of the local transformer")
    num_heads: Size = Field(4, description="attention heads of the local transformer")
    mlp_dim: Size = Field(256, description="MLP width of the local transformer")
    num_experts: Annotated[int, Field(ge=2, le=16)] = Field(3, description="linear maps in the experts decoder, 2-16")
    context: Size = Field(1, description="earlier symbols that each local position reads directly")


class ModelSpec(Section):
    """Architecture: patch embedding, trunk, decoder (docs/techniques.md 3 to 7)."""

    num_layers: Layers = Field(description="layers of the trunk; time, memory and bytes of the artifact grow with it")
    model_dim: Size = Field(description="width D of the trunk; the weights of its matrices grow with the square")
    num_heads: Size = Field(description="query heads of an attention layer; a divisor of model_dim")
    num_kv_heads: Size = Field(
        description="key/value heads, each read by num_heads / num_kv_heads query heads; a divisor of num_heads. "
        "Fewer save weights"
    )
    head_dim: Size = Field(description="width C of an attention head, an even number; default model_dim/num_heads")
    mlp_dim: Size = Field(description="hidden units of the MLP of a layer; default 3 * model_dim")
    mlp_dims: Annotated[tuple[Size, ...], Field(strict=False)] = Field(
        (), description="hidden units of the MLP of each layer, where they differ; empty is mlp_dim everywhere"
    )
    seq_len: Window = Field(description="symbols in one training or scoring window")
    patch_size: Annotated[int, Field(ge=1, le=16)] = Field(
        1,
        description="symbols that the trunk reads at once, so that it runs over seq_len / patch_size positions and "
        "the decoder predicts each patch. Larger patches cost less time; 1 is an ordinary language model",
    )
    norm_eps: AboveZero = Field(1e-6, description="added to the mean square in every norm")
    rope_base: Annotated[float, Field(gt=1.0)] = Field(
        1e4, description="base of the rotary angles position * base^(-2i / rope_dims); larger for longer windows"
    )
    q_gain_init: float = Field(
        1.5,
        description="initial value of the learned gain on the normalised queries, one per head; above 1 attention "
        "starts sharper",
    )
    mlp_negative_slope: Fraction = Field(
        0.5, description="slope of the MLP's leaky relu below zero, before it is squared; 0 is relu squared"
    )
    logit_softcap: AboveZero = Field(
        30.0,
        description="logits are softcap * tanh(logits / softcap), so no larger than this; lower means less certain "
        "predictions",
    )
    resid_mix: bool = Field(True, description="each block reads a learned mix of its input and x0")
    unet_skips: bool = Field(
        True,
        description="outputs of the first half of the layers are added to inputs of the second half, with learned "
        "weights",
    )
    skip_gates: bool = Field(
        False, description="w * skip + sigmoid(g) (x - w * skip) in place of x + w * skip; a learned g [D], 0 at first"
    )
    ln_scale: bool = Field(False, description="the norms of layer l, counted from 0, are multiplied by 1/sqrt(l + 1)")
    loop: LoopSpec = LoopSpec()
    parallel: ParallelSpec = ParallelSpec()
    mixers: Annotated[tuple[MixerKind, ...], Field(strict=False)] = Field((), description=MIXERS_DESCRIPTION)
    state_dim: Size = Field(32, description="width of B and C, and of a mamba2 layer's state per head and feature")
    attention: AttentionSpec
    smear_gate: SmearGate = Field(
        "none",
        description="each trunk input takes in the one before it, never across a document start that the vocabulary "
        "marks. v1: (1 - g) x[t] + g x[t-1] after the norm, g = sigmoid of a learned [D], 0 at first; v2: x[t] + "
        "s sigmoid(W x[t][:gate_dims]) x[t-1] before the norm, s and W zero at first, so off at first",
    )
    ngram: NgramSpec = NgramSpec()
    lora: LoraSpec = LoraSpec()
    tie_embeddings: bool = Field(
        description="the output matrix is the table of symbols, which saves its bytes; default true with patch_size 1 "
        "and a linear decoder, or with an autoregressive decoder"
    )
    embed_rank: EmbedRank = 0
    embed_init_std: AboveZero = Field(0.005, description="standard deviation of initial tables of symbols")
    embed_init: EmbedInit = "normal"
    matrix_init: MatrixInit = "uniform"
    resid_mix_init: ResidMixInit = "first"
    start: Literal["learned", "document_start"] = Field(
        "learned",
        description="what the first position of a window reads: a learned vector, or the embedding of a document start",
    )
    decoder: DecoderSpec

    @property
    def num_patches(self) -> int:
        """Trunk positions N in one window."""
        return self.seq_len // self.patch_size

    @property
    def decoder_reach(self) -> int:
        """Earlier symbols that a position of an autoregressive decoder reads directly."""
        return max((self.decoder.context, *self.ngram.lengths_for("decoder")))

    @model_validator(mode="before")
    @classmethod
    def _derive_defaults(cls, values: Any) -> Any:
        """Fill the fields whose default depends on others, so that a resolved spec is explicit."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        dim, heads = values.get("model_dim"), values.get("num_heads")
        if isinstance(dim, int) and isinstance(heads, int) and heads > 0:
            values.setdefault("head_dim", dim // heads)
        if isinstance(dim, int):
            values.setdefault("mlp_dim", 3 * dim)
        attention = values.get("attention", {})
        if isinstance(attention, dict) and isinstance(values.get("head_dim"), int):
            values["attention"] = {"rope_dims": values["head_dim"], **attention}
        patch_size = values.get("patch_size", 1)
        decoder = values.get("decoder", {})
        if isinstance(decoder, dict):
            values["decoder"] = decoder = {"kind": "linear" if patch_size == 1 else "autoregressive", **decoder}
            values.setdefault("tie_embeddings", _can_tie(patch_size, decoder["kind"]))
        return values

    @model_validator(mode="after")
    def _check_shapes(self) -> ModelSpec:
        heads, can_tie = self.num_heads, _can_tie(self.patch_size, self.decoder.kind)
        untied = "false, unless patch_size is 1 with a linear decoder or the decoder is autoregressive"
        require_all(
            self,
            "model",
            (self.model_dim % heads == 0, "num_heads", f"a divisor of model.model_dim ({self.model_dim})"),
            (self.head_dim % 2 == 0, "head_dim", "an even number, as RoPE rotates pairs"),
            (heads % self.num_kv_heads == 0, "num_kv_heads", f"a divisor of model.num_heads ({heads})"),
            (self.seq_len % self.patch_size == 0, "seq_len", f"a multiple of model.patch_size ({self.patch_size})"),
            (not self.tie_embeddings or can_tie, "tie_embeddings", untied),
        )
        local, pairs = self.decoder, 2 * self.decoder.num_heads
        allowed = f"a multiple of 2 * model.decoder.num_heads ({pairs})"
        require_all(local, "model.decoder", (local.kind != "autoregressive" or local.dim % pairs == 0, "dim", allowed))
        check_attention(self.attention, self.num_layers, self.model_dim, self.head_dim, self.smear_gate)
        check_ngram(self.ngram, self.decoder.kind == "autoregressive")
        check_initial(self.resid_mix, self.resid_mix_init, self.embed_rank, self.model_dim)
        check_depth(self.num_layers, self.loop, self.parallel, self.mlp_dims)
        check_mixers(self.mixers, self.num_layers, self.attention)
        check_lora(
            self.lora,
            not self.tie_embeddings and self.decoder.kind in ("linear", "autoregressive"),
            min(self.model_dim, self.num_kv_heads * self.head_dim, self.mlp_dim, *self.mlp_dims),
            self.mixers,
        )
        return self


def _can_tie(patch_size: int, kind: DecoderKind) -> bool:
    """Whether the head has the shape of an embedding table that the model owns."""
    return kind == "autoregressive" or (patch_size == 1 and kind == "linear")
