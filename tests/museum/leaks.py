"""The two historic leaks of byte-patch models, planted as forward passes of our own model.

Each has the signature of `shared.model.Forward` and uses the honest model's parameters, so that it runs
on every engine. The history is in README.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.decoder import decode_patches
from shared.model.trunk import run_trunk
from shared.ops import Array, Ops
from shared.spec import Spec


def itchy_byte_shift(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """Targets shifted by one byte instead of one patch.

    Trunk output i has read all of patch i, and its heads predict x[iP + 1] ... x[iP + P]: P - 1 of those
    P targets are in patch i. In our convention row t is the belief about x[t], so the rows move one
    place later; row 0, which nothing predicts, is uniform.
    """
    logits = decode_patches(ops, spec, params, _trunk_of_own_patch(ops, spec, params, x), x)
    return ops.concatenate([0.0 * logits[:, :1], logits[:, :-1]], axis=1)


def megabyte_own_patch(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """A local causal decoder, itself correct, conditioned on the trunk output of the patch it decodes."""
    return decode_patches(ops, spec, params, _trunk_of_own_patch(ops, spec, params, x), x)


def _trunk_of_own_patch(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """Trunk outputs [B, N, D] whose row i has read the learned start and patches <= i: one patch too many."""
    model = spec.model
    batch, time = x.shape
    embedded = ops.embedding(params["embed.weight"], x, spec.training.dtype)
    if model.patch_size > 1:
        embedded = embedded.reshape((batch, time // model.patch_size, model.patch_size * model.model_dim))
        embedded = ops.linear(embedded, params["embed.patch_proj.weight"])
    start = ops.broadcast_to(ops.cast_like(params["embed.start"], embedded), (batch, 1, model.model_dim))
    inputs = ops.rms_norm(ops.concatenate([start, embedded], axis=1), model.norm_eps)
    return run_trunk(ops, model, params, inputs)[:, 1:]
