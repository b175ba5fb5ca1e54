"""The model as a function: symbols in, a distribution for each of them out.

`forward(x)` gives the logits of every x[:, t] from strictly earlier symbols. Losses, scores, audits
and generation are all derived from it here, so they cannot disagree about alignment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shared.model.adapters import with_adapters
from shared.model.decoder import decode_patches
from shared.model.embedding import embed_patches
from shared.model.layer import trunk_context
from shared.model.logits import log_probs_of_logits, nats_of_logits
from shared.model.trunk import run_trunk
from shared.ops import Array, Ops
from shared.spec import Spec

Forward = Callable[[Ops, Spec, Mapping[str, Array], Array], Array]


def forward(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array) -> Array:
    """Logits [B, T, V] before the softcap for symbols x int32; T a multiple of patch_size.

    Row t is the model's belief about x[:, t] and depends on x[:, :t] only.
    """
    params = with_adapters(ops, spec.model, params)
    return decode_patches(ops, spec, params, trunk_outputs(ops, spec, params, x_BT), x_BT)


def trunk_outputs(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array) -> Array:
    """Normalised trunk outputs [B, N, D] of symbols x; row i depends on patches < i only."""
    params = with_adapters(ops, spec.model, params)
    context = trunk_context(ops, spec, params, x_BT)
    return run_trunk(ops, spec.model, params, embed_patches(ops, spec, params, x_BT), context)


def symbol_nats(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array, model: Forward = forward) -> Array:
    """-ln p(x[:, t] | x[:, :t]) of every symbol: [B, T] float32, nats."""
    return nats_of_logits(ops, spec, params, model(ops, spec, params, x_BT), x_BT)


def mean_nats(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array, model: Forward = forward) -> Array:
    """Mean nats over all B * T symbols, a scalar."""
    return ops.sum(symbol_nats(ops, spec, params, x_BT, model)) / (x_BT.shape[0] * x_BT.shape[1])


def log_probs(ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array, model: Forward = forward) -> Array:
    """ln p(v | x[:, :t]) for every symbol v of the vocabulary: [B, T, V] float32."""
    return log_probs_of_logits(ops, spec, params, model(ops, spec, params, x_BT))
