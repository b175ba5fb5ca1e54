"""Hashed n-gram embeddings at the input of the trunk or of the local decoder (docs/techniques.md 4.3).

The features of a symbol are of that symbol and those before it. They are added before the shift, so a position reads
n-grams that end before what it predicts.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.ops import Array, Ops
from shared.spec import Spec


def trunk_ngrams(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array) -> Array:
    """scale * W mean over a patch of sum over n of E_n[hash of x[t - n + 1], ..., x[t]]: [B, N, D].

    An n-gram that begins before the window, or in a different document from the one its patch ends in, adds nothing.
    """
    model = spec.model
    batch, time = x_BT.shape
    patches = (batch, time // model.patch_size, model.patch_size)
    documents_BT = symbol_documents(ops, spec, x_BT)
    # The trunk position that reads a patch belongs to the document that the patch ends in (position_documents).
    last_BN1 = documents_BT.reshape(patches)[:, :, model.patch_size - 1 :]
    own_BT = ops.broadcast_to(last_BN1, patches).reshape((batch, time))
    total = _sum_of_rows(ops, spec, params, x_BT, documents_BT, own_BT)
    return _projected(ops, params, ops.sum(total.reshape((*patches, model.ngram.dim)), axes=(2,)) / model.patch_size)


def decoder_ngrams(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array) -> Array:
    """scale * W sum over n of E_n[hash of x[t - n], ..., x[t - 1]], [B, T, dim]: what is known before x[t].

    An n-gram that begins before the window, or in a different document from the one it ends in, adds nothing.
    """
    documents_BT = symbol_documents(ops, spec, x_BT)
    features = _projected(ops, params, _sum_of_rows(ops, spec, params, x_BT, documents_BT, documents_BT))
    return ops.shift_right(features, 0.0 * features[:, :1])


def symbol_documents(ops: Ops, spec: Spec, x_BT: Array) -> Array:
    """The number of the document of each symbol in its window, [B, T]; all 0 where none is marked."""
    start = spec.vocabulary.document_start
    # No symbol is -1: one document.
    return ops.running_count(x_BT, -1 if start is None else start)


def _sum_of_rows(
    ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array, documents_BT: Array, own_BT: Array
) -> Array:
    """Sum over n of the rows of the n-grams that end with each symbol and begin in document own: [B, T, dim]."""
    ngram, symbols = spec.model.ngram, [x_BT]
    total = None
    for length in ngram.lengths:
        symbols.append(_earlier(ops, symbols[-1], before=0))
        documents_BT = _earlier(ops, documents_BT, before=-1)
        index_BT = ngram_rows(symbols, ngram.multiplier, ngram.rows)
        rows = ops.embedding(params[f"ngram_embed.tables.{length}.weight"], index_BT, spec.training.dtype)
        elsewhere_BT = ops.minimum(ops.cast_like(own_BT - documents_BT, rows), 1.0)
        rows = (1.0 - elsewhere_BT)[:, :, None] * rows
        total = rows if total is None else total + rows
    assert total is not None, "no n-grams"
    return total


def _projected(ops: Ops, params: Mapping[str, Array], features: Array) -> Array:
    projected = ops.linear(features, params["ngram_embed.proj.weight"])
    return ops.cast_like(params["ngram_embed.scale"], projected) * projected


def ngram_rows(symbols: list[Array], multiplier: int, rows: int) -> Array:
    """Rows [B, T] of the n-grams of symbols[n - 1] (the oldest), ..., symbols[0], each int [B, T] and not negative.

    No product reaches 2^31, so 32 and 64 bits agree.
    """
    hashed = symbols[-1] % rows
    for symbol in symbols[-2::-1]:
        hashed = (hashed * multiplier % rows + symbol) % rows
    return hashed


def _earlier(ops: Ops, x_BT: Array, before: int) -> Array:
    """x one position later, with `before` at position 0."""
    return ops.delayed(x_BT, 0 * x_BT[:, :1] + before)
