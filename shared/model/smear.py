"""SmearGate: each trunk input takes in some of the one before it (docs/techniques.md 4.4).

It acts on inputs that are shifted already: position i mixes patches i - 1 and i - 2, both earlier than what it
predicts. Where the vocabulary marks document starts nothing crosses one; without that mask the last symbol of a
document reaches the next one even under a document mask, the bug of PR #1797.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.ops import Array, Ops
from shared.spec import ModelSpec


def smear_normalised(ops: Ops, params: Mapping[str, Array], x: Array, documents: Array | None) -> Array:
    """Version 1, after the norm: (1 - g) x[t] + g x[t - 1] with g = sigmoid(embed.smear_logit) [D]; x [B, N, D]."""
    gate = ops.cast_like(ops.sigmoid(params["embed.smear_logit"]), x)
    return x + gate * (previous_position(ops, x, documents) - x)


def smear_embedded(ops: Ops, model: ModelSpec, params: Mapping[str, Array], x: Array, documents: Array | None) -> Array:
    """Version 2, before the norm: x[t] + s sigmoid(W x[t][:gate_dims]) x[t - 1] with a scalar s; x [B, N, D]."""
    gate = ops.sigmoid(ops.linear(x[..., : model.attention.gate_dims], params["embed.smear_gate.weight"]))
    scale = ops.cast_like(params["embed.smear_scale"], x)
    return x + scale * gate * previous_position(ops, x, documents)


def previous_position(ops: Ops, x: Array, documents: Array | None) -> Array:
    """x [B, N, D] one place later: zero at place 0 and, given documents [B, N], where another one begins."""
    previous = ops.concatenate([0.0 * x[:, :1], x[:, :-1]], axis=1)
    if documents is None:
        return previous
    rise = ops.concatenate([0 * documents[:, :1], documents[:, 1:] - documents[:, :-1]], axis=1)
    begins = ops.minimum(ops.cast_like(rise, x), 1.0)
    return (1.0 - begins)[:, :, None] * previous
