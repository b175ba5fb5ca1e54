"""From symbols to trunk inputs, and the only shift in the project.

Everything a position may see is strictly earlier: `shift_right` drops the last entry of a sequence
and puts a learned start in front. The trunk input of patch i is the embedding of patch i - 1, the
local decoder's input of symbol t is the embedding of symbol t - 1. There is no shifted target array.

SmearGate (docs/techniques.md 4.4) lets each trunk input take in some of the one before it. It acts on inputs that are
shifted already: position i mixes patches i - 1 and i - 2, both earlier than what it predicts. Where the vocabulary
marks document starts nothing crosses one; without that mask the last symbol of a document reaches the next one even
under a document mask, the bug of PR #1797.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.layer import position_documents
from shared.model.ngram import trunk_ngrams
from shared.ops import Array, Ops
from shared.spec import Spec


def embed_patches(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array) -> Array:
    """Trunk inputs [B, N, D] of symbols x (int32): row i depends on patches < i only.

    Patch i is rms(W concat(E[x[iP]], ..., E[x[iP + P - 1]])), for P = 1 rms(E[x[i]]) (docs/techniques.md 4.1).
    """
    model = spec.model
    batch, time = x_BT.shape
    embeds = embed_symbols(ops, spec, params, x_BT)
    if model.patch_size > 1:
        embeds = embeds.reshape((batch, time // model.patch_size, model.patch_size * model.model_dim))
        embeds = ops.linear(embeds, params["embed.patch_proj.weight"])
    if model.ngram.lengths_for("trunk"):
        embeds = embeds + trunk_ngrams(ops, spec, params, x_BT)
    inputs_BND = shift_right(ops, embeds, window_start(ops, spec, params, x_BT))
    if model.smear_gate == "v2":
        inputs_BND = _smear_embedded(ops, spec, params, inputs_BND, position_documents(ops, spec, x_BT))
    inputs_BND = ops.rms_norm(inputs_BND, model.norm_eps)
    if model.smear_gate == "v1":
        inputs_BND = _smear_normalised(ops, params, inputs_BND, position_documents(ops, spec, x_BT))
    return inputs_BND


def embed_symbols(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """E[x], [..., D] of symbols x [...] (int32), with E = A B' where the table is factored."""
    rows = ops.embedding(params["embed.weight"], x, spec.training.dtype)
    return ops.linear(rows, params["embed.rank_proj.weight"]) if spec.model.embed_rank else rows


def tied_logits(ops: Ops, spec: Spec, params: Mapping[str, Array], h: Array) -> Array:
    """E h, [..., V] of trunk outputs h [..., D]; with factors A (B' h), so that no [V, D] is made."""
    if spec.model.embed_rank:
        h = ops.linear(h, ops.transpose(params["embed.rank_proj.weight"]))
    return ops.linear(h, params["embed.weight"])


def shift_right(ops: Ops, x_BTD: Array, start_D: Array) -> Array:
    """x moved one position later, with `start` at position 0: out[:, t] = x[:, t - 1]."""
    return ops.shift_right(x_BTD, start_entry(ops, x_BTD, start_D))


def start_entry(ops: Ops, x_BTD: Array, start_D: Array) -> Array:
    """The entry `start` before those of x: [B, 1, D]."""
    return ops.broadcast_to(ops.cast_like(start_D, x_BTD), (x_BTD.shape[0], 1, x_BTD.shape[2]))


def window_start(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array) -> Array:
    """The embedding that precedes the first symbol of x: [D], see `model.start`. No entry of x is read."""
    if spec.model.start == "learned":
        return params["embed.start"]
    assert spec.vocabulary.document_start is not None
    # An index in the engine's own kind of array; the values of x cancel.
    symbol = x_BT[:1, :1] * 0 + spec.vocabulary.document_start
    return embed_symbols(ops, spec, params, symbol).reshape((spec.model.model_dim,))


def previous_position(ops: Ops, x_BND: Array, documents_BN: Array | None) -> Array:
    """x one position later: zero at position 0 and, given documents, where another one begins."""
    previous = ops.delayed(x_BND, 0.0 * x_BND[:, :1])
    if documents_BN is None:
        return previous
    # The first position is in document 0.
    rise = documents_BN - ops.delayed(documents_BN, 0 * documents_BN[:, :1])
    begins_BN = ops.minimum(ops.cast_like(rise, x_BND), 1.0)
    return (1.0 - begins_BN)[:, :, None] * previous


def _smear_normalised(ops: Ops, params: Mapping[str, Array], x_BND: Array, documents_BN: Array | None) -> Array:
    """Version 1, after the norm: (1 - g) x[t] + g x[t - 1] with g = sigmoid(embed.smear_logit) [D]."""
    gate_D = ops.cast_like(ops.sigmoid(params["embed.smear_logit"]), x_BND)
    return x_BND + gate_D * (previous_position(ops, x_BND, documents_BN) - x_BND)


def _smear_embedded(
    ops: Ops, spec: Spec, params: Mapping[str, Array], x_BND: Array, documents_BN: Array | None
) -> Array:
    """Version 2, before the norm: x[t] + s sigmoid(W x[t][:gate_dims]) x[t - 1] with a scalar s."""
    gate = ops.sigmoid(ops.linear(x_BND[..., : spec.model.attention.gate_dims], params["embed.smear_gate.weight"]))
    scale = ops.cast_like(params["embed.smear_scale"], x_BND)
    return x_BND + scale * gate * previous_position(ops, x_BND, documents_BN)
