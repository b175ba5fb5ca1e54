"""N-gram embeddings that read too much or learn nothing: planted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.model import initial_weights
from shared.model.decoder import earlier_symbols, patch_conditions, patch_logits
from shared.model.embedding import embed_patches
from shared.model.forward import trunk_outputs
from shared.model.layer import trunk_context
from shared.model.ngram import decoder_ngrams, trunk_ngrams
from shared.ops import Array, Ops
from shared.spec import Spec
from shared.spec.ngram import NgramSpec
from tests.museum.attention_leaks import _decoded, smear_across_documents


def without_ngrams(spec: Spec) -> Spec:
    """The spec with no n-grams at its input."""
    return spec.model_copy(update={"model": spec.model.model_copy(update={"ngram": NgramSpec()})})


def ngrams_of_the_target(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """N-grams that end with x[t], added after the shift: right where x is the input, here x is what is predicted."""
    model = spec.model
    inputs = embed_patches(ops, without_ngrams(spec), params, x) + trunk_ngrams(ops, spec, params, x)
    inputs = ops.rms_norm(inputs, model.norm_eps)
    return _decoded(ops, spec, params, inputs, trunk_context(ops, spec, params, x), x)


def decoder_ngrams_of_the_target(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """N-grams of a local decoder that end with x[t], which position t is to predict: added without their shift."""
    later = decoder_ngrams(ops, spec, params, ops.concatenate([x, x[:, -1:]], axis=1))[:, 1:]
    previous = earlier_symbols(ops, without_ngrams(spec), params, x) + later
    condition = patch_conditions(ops, spec, params, trunk_outputs(ops, spec, params, x))
    logits = patch_logits(ops, spec, params, condition, previous, 0)
    return logits.reshape((*x.shape, spec.vocabulary.size))


def ngrams_across_documents(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """N-grams that do not know where documents start, under a document mask: no input does, which is the gate's bug."""
    return smear_across_documents(ops, spec, params, x)


def dead_factors(spec: Spec) -> dict[str, np.ndarray]:
    """Initial weights with a zero projection beside zero tables: neither gets a gradient (docs/techniques.md 4.3)."""
    weights = initial_weights(spec)
    return {**weights, "ngram_embed.proj.weight": 0.0 * weights["ngram_embed.proj.weight"]}
