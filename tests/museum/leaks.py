"""Leaks of the target, planted as forward passes of our own model: the two historic ones of byte-patch models, and some
at so few positions that a look at a handful of them finds nothing.

Each has the signature of `shared.model.Forward` and uses the honest model's parameters, so that it runs
on every engine. The history is in README.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shared.model import forward
from shared.model.decoder import decode_patches
from shared.model.trunk import run_trunk
from shared.ops import Array, Ops
from shared.spec import Spec

# Added to a logit: nearly certain, whatever the other logits say.
PEEK = 30.0


def itchy_byte_shift(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """Targets shifted by one byte instead of one patch.

    Trunk output i has read all of patch i, and its heads predict x[iP + 1] ... x[iP + P]: P - 1 of those
    P targets are in patch i. In our convention row t is the belief about x[t], so the rows move one
    position later; row 0, which nothing predicts, is uniform.
    """
    logits = decode_patches(ops, spec, params, _trunk_of_own_patch(ops, spec, params, x), x)
    return ops.concatenate([0.0 * logits[:, :1], logits[:, :-1]], axis=1)


def megabyte_own_patch(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """A local causal decoder, itself correct, conditioned on the trunk output of the patch it decodes."""
    return decode_patches(ops, spec, params, _trunk_of_own_patch(ops, spec, params, x), x)


def target_every_16th(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """The symbol itself at positions 16, 32, ..."""
    return _with_targets(ops, spec, params, x, range(16, x.shape[1], 16))


def target_every_32nd(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """The symbol itself at positions 32, 64, ..."""
    return _with_targets(ops, spec, params, x, range(32, x.shape[1], 32))


def target_every_64th(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """The symbol itself at positions 64, 128, ..."""
    return _with_targets(ops, spec, params, x, range(64, x.shape[1], 64))


def target_every_128th(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """The symbol itself at positions 128, 256, ..."""
    return _with_targets(ops, spec, params, x, range(128, x.shape[1], 128))


def target_at_one_position(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """The symbol itself at one position, drawn at random for each length of the window."""
    return _with_targets(ops, spec, params, x, [int(np.random.default_rng(x.shape[1]).integers(x.shape[1]))])


def _with_targets(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array, positions: Sequence[int]) -> Array:
    """Honest logits, with PEEK added to that of the true symbol at some positions."""
    logits = forward(ops, spec, params, x)
    chosen = np.zeros((x.shape[1], 1), np.float32)
    chosen[positions] = PEEK
    one_hot = ops.embedding(ops.asarray(np.eye(spec.vocabulary.size, dtype=np.float32)), x, "float32")
    return logits + ops.cast_like(one_hot * ops.asarray(chosen), logits)


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
