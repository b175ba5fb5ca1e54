"""From symbols to trunk inputs, and the only shift in the project.

Everything a position may see is strictly earlier: `shift_right` drops the last entry of a sequence
and puts a learned start in front. The trunk input of patch i is the embedding of patch i - 1, the
local decoder's input of symbol t is the embedding of symbol t - 1. There is no shifted target array.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.documents import position_documents
from shared.model.ngram import ngram_embeds
from shared.model.smear import smear_embedded, smear_normalised
from shared.ops import Array, Ops
from shared.spec import Spec


def shift_right(ops: Ops, x: Array, start: Array) -> Array:
    """x [B, T, D] moved one place later, with start [D] at place 0: out[:, t] = x[:, t - 1]."""
    batch, _, dim = x.shape
    first = ops.broadcast_to(ops.cast_like(start, x), (batch, 1, dim))
    return ops.concatenate([first, x[:, :-1]], axis=1)


def window_start(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """What stands before the first symbol of x [B, T]: [D], see `model.start`. No entry of x is read."""
    if spec.model.start == "learned":
        return params["embed.start"]
    assert spec.vocabulary.document_start is not None
    # An index in the engine's own kind of array; the values of x cancel.
    symbol = x[:1, :1] * 0 + spec.vocabulary.document_start
    return embed_symbols(ops, spec, params, symbol).reshape((spec.model.model_dim,))


def embed_symbols(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """E[x], [..., D] of symbols x [...] (int32), with E = A B' where the table is factored."""
    rows = ops.embedding(params["embed.weight"], x, spec.training.dtype)
    return ops.linear(rows, params["embed.rank_proj.weight"]) if spec.model.embed_rank else rows


def tied_logits(ops: Ops, spec: Spec, params: Mapping[str, Array], h: Array) -> Array:
    """E h, [..., V] of trunk outputs h [..., D]; with factors A (B' h), so that no [V, D] is made."""
    if spec.model.embed_rank:
        h = ops.linear(h, ops.transpose(params["embed.rank_proj.weight"]))
    return ops.linear(h, params["embed.weight"])


def embed_patches(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """Trunk inputs [B, N, D] of symbols x [B, T] (int32): row i depends on patches < i only.

    Patch i is rms(W concat(E[x[iP]], ..., E[x[iP + P - 1]])), for P = 1 rms(E[x[i]]) (docs/techniques.md 4.1).
    """
    model = spec.model
    batch, time = x.shape
    num_patches = time // model.patch_size
    embedded = embed_symbols(ops, spec, params, x)
    if model.patch_size > 1:
        embedded = embedded.reshape((batch, num_patches, model.patch_size * model.model_dim))
        embedded = ops.linear(embedded, params["embed.patch_proj.weight"])
    if model.ngram.rows:
        embedded = embedded + ngram_embeds(ops, spec, params, x)
    embedded = shift_right(ops, embedded, window_start(ops, spec, params, x))
    if model.smear_gate == "v2":
        embedded = smear_embedded(ops, model, params, embedded, position_documents(ops, spec, x))
    normalised = ops.rms_norm(embedded, model.norm_eps)
    if model.smear_gate == "v1":
        normalised = smear_normalised(ops, params, normalised, position_documents(ops, spec, x))
    return normalised
