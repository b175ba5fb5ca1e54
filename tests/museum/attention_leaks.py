"""Attention add-ons that read too much, planted as forward passes of our own model.

Each has the signature of `shared.model.Forward`, uses the honest model's parameters and does one thing wrong.
The history is in README.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.decoder import decode_patches
from shared.model.embedding import embed_patches, previous_position, shift_right
from shared.model.layer import TrunkContext, trunk_context
from shared.model.trunk import run_trunk
from shared.ops import Array, Ops
from shared.spec import Spec, VocabularySpec


def smear_across_documents(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """SmearGate that does not know where documents start: the first position of one takes in the end of another."""
    unmarked = spec.model_copy(update={"vocabulary": VocabularySpec()})
    inputs = embed_patches(ops, unmarked, params, x)
    return _decoded(ops, spec, params, inputs, trunk_context(ops, spec, params, x), x)


def smear_gate_of_the_target(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """SmearGate v2 written before the shift and corrected by one place too few: the gate of position t reads x[t],
    which position t is to predict. Patches of one symbol."""
    model = spec.model
    embedded = ops.embedding(params["embed.weight"], x, spec.training.dtype)
    gate = ops.sigmoid(ops.linear(embedded[..., : model.attention.gate_dims], params["embed.smear_gate.weight"]))
    inputs = shift_right(ops, embedded, params["embed.start"])
    inputs = inputs + params["embed.smear_scale"] * gate * previous_position(ops, inputs, None)
    inputs = ops.rms_norm(inputs, model.norm_eps)
    return _decoded(ops, spec, params, inputs, trunk_context(ops, spec, params, x), x)


def value_embeddings_of_the_target(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """Value embeddings looked up by x, as in trainers whose x is the input, though here x is what is predicted."""
    batch, time = x.shape
    patch_size, dim = spec.model.patch_size, spec.model.attention.value_embed_dim
    rows = ops.embedding(params["value_embed.weight"], x, spec.training.dtype)
    rows = rows.reshape((batch, time // patch_size, patch_size * dim))
    honest = trunk_context(ops, spec, params, x)
    planted = TrunkContext(honest.documents, ops.linear(rows, params["value_embed.value_proj.weight"]))
    return _decoded(ops, spec, params, embed_patches(ops, spec, params, x), planted, x)


def documents_of_the_target(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """A document mask made from x itself: position t already knows whether x[t] starts a document."""
    assert spec.vocabulary.document_start is not None
    honest = trunk_context(ops, spec, params, x)
    size = spec.model.patch_size
    counts = ops.running_count(x, spec.vocabulary.document_start)
    numbers = counts.reshape((x.shape[0], x.shape[1] // size, size))[:, :, size - 1]
    planted = TrunkContext(numbers, honest.value_embeds)
    return _decoded(ops, spec, params, embed_patches(ops, spec, params, x), planted, x)


def _decoded(
    ops: Ops, spec: Spec, params: Mapping[str, Array], inputs: Array, context: TrunkContext, x: Array
) -> Array:
    return decode_patches(ops, spec, params, run_trunk(ops, spec.model, params, inputs, context), x)
