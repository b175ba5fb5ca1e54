"""One layer of the model: its widths, its parameters, and what it reads apart from its input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.model.block_shape import BlockShape, decoder_block_shape, trunk_block_shape
from shared.ops import Array, Ops
from shared.spec import ModelSpec, Spec


@dataclass
class TrunkContext:
    """Inputs of the trunk's layers apart from the residual stream, made for each forward pass.

    `documents` is int32 [B, N], `value_embeds` [B, N, G * C]; the first layer leaves its values [B, N, G, C] in
    `first_values` when a later one wants them.
    """

    documents: Array | None = None
    value_embeds: Array | None = None
    first_values: Array | None = None


@dataclass(frozen=True)
class Layer:
    """One layer. Its parameters are those of `params` under `prefix`."""

    ops: Ops
    model: ModelSpec
    shape: BlockShape
    params: Mapping[str, Array]
    prefix: str
    context: TrunkContext

    def weight(self, name: str) -> Array:
        """The matrix `name`, [out, in]."""
        return self.params[f"{self.prefix}.{name}.weight"]

    def control(self, name: str, like: Array | None = None) -> Array:
        """The gain, scale or other small tensor `name`, in the dtype of `like`; without it as stored."""
        value = self.params[f"{self.prefix}.{name}"]
        return value if like is None else self.ops.cast_like(value, like)

    def linear(self, name: str, x: Array) -> Array:
        """x [..., in] through the matrix `name`: [..., out]."""
        return self.ops.linear(x, self.params[f"{self.prefix}.{name}.weight"])

    def gained_linear(self, name: str, gain: str, x: Array) -> Array:
        """x [..., in] through the matrix `name`, times the gain [out] of that name: [..., out]."""
        return self.ops.gained_linear(x, self.weight(name), self.control(gain))

    def rms_norm(self, x: Array) -> Array:
        """x / rms(x) over the last axis."""
        return self.ops.rms_norm(x, self.model.norm_eps)


def trunk_layer(ops: Ops, model: ModelSpec, params: Mapping[str, Array], index: int, context: TrunkContext) -> Layer:
    """Layer `index` of the trunk."""
    return Layer(ops, model, trunk_block_shape(model, index), params, f"layers.{index}", context)


def decoder_layer(ops: Ops, model: ModelSpec, params: Mapping[str, Array], index: int) -> Layer:
    """Layer `index` of the local autoregressive decoder, which reads only its input."""
    return Layer(ops, model, decoder_block_shape(model), params, f"decoder.layers.{index}", TrunkContext())


def trunk_context(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array) -> TrunkContext:
    """The context of symbols x: entry i of each array depends on patches < i only."""
    return TrunkContext(position_documents(ops, spec, x_BT), _value_embeds(ops, spec, params, x_BT))


def position_documents(ops: Ops, spec: Spec, x_BT: Array) -> Array | None:
    """Number of the document of every trunk position, int32 [B, N] for symbols x; None where nothing needs it.

    Position i has read patches < i, and its number counts the document starts in them: its document is the one
    that patch i - 1 ends in. It cannot know of a start in patch i, the one to be predicted. Numbers never fall, and
    they rise where the input patch holds a start.
    """
    start, patch_size = spec.vocabulary.document_start, spec.model.patch_size
    if start is None or not (spec.model.attention.document_mask or spec.model.smear_gate != "none"):
        return None
    batch, time = x_BT.shape
    counts_BNP = ops.running_count(x_BT, start).reshape((batch, time // patch_size, patch_size))
    counts_BN = counts_BNP[:, :, patch_size - 1]
    return ops.shift_right(counts_BN, 0 * counts_BN[:, :1])


def _value_embeds(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array) -> Array | None:
    """W concat(E[x[(i - 1) P]], ..., E[x[iP - 1]]) for position i, zero for position 0: [B, N, G * C]."""
    dim, patch_size = spec.model.attention.value_embed_dim, spec.model.patch_size
    if dim == 0:
        return None
    batch, time = x_BT.shape
    rows = ops.embedding(params["value_embed.weight"], x_BT, spec.training.dtype)
    rows = rows.reshape((batch, time // patch_size, patch_size * dim))
    values = ops.linear(rows, params["value_embed.value_proj.weight"])
    return ops.shift_right(values, 0.0 * values[:, :1])
