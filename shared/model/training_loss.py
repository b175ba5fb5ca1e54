"""The loss that training minimises, and the plain nats that it reports (docs/techniques.md 8).

Scores never come from here: they are plain nats of the weights as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.errors import RunError
from shared.model.adapters import with_adapters
from shared.model.auxiliary import auxiliary_loss
from shared.model.counted import split_counted
from shared.model.decoder import decode_patches
from shared.model.forward import Forward, forward, trunk_outputs
from shared.model.logits import nats_of_logits
from shared.model.qat import quantised_matrices, training_weights
from shared.model.row_factors import symbols_of
from shared.model.stages import COUNTED, SYMBOL_WEIGHTS
from shared.ops import Array, Ops
from shared.spec import Spec

LEAST_SYMBOL_WEIGHT = 0.1


def training_loss(
    ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array, model: Forward = forward
) -> tuple[Array, Array]:
    """(the loss to differentiate, mean nats) over all B * T symbols of x, two scalars.

    Both are of the function that is trained, with the temperature and bias of an artifact that learns while it is
    scored; without options of `training.loss` they are the same array. With
    `counts` "marked" they are means over the symbols that count, which `COUNTED` says the share of.
    """
    loss = spec.training.loss
    stored, h_BND, counts_BT = params, None, None
    if loss.counts == "marked":
        x_BT, counts_BT = split_counted(ops, x_BT)
    if spec.training.qat.form != "off":
        params = training_weights(ops, spec, params, quantised_matrices(spec), x_BT)
    if loss.has_auxiliary:
        params = with_adapters(ops, spec.model, params)
        h_BND = trunk_outputs(ops, spec, params, x_BT)
    # The same function either way; where it is known to be made of trunk outputs they are not made twice.
    shares_trunk = h_BND is not None and model is forward
    logits = decode_patches(ops, spec, params, h_BND, x_BT) if shares_trunk else model(ops, spec, params, x_BT)
    targets_BT = symbols_of(spec.model, x_BT)
    count = targets_BT.shape[0] * targets_BT.shape[1]
    nats = nats_of_logits(ops, spec, params, logits, targets_BT)
    if counts_BT is not None:
        nats = ops.cast_like(symbols_of(spec.model, counts_BT), nats) * nats / params.get(COUNTED, 1.0)
    mean_nats = ops.sum(nats) / count
    if loss.is_plain:
        return mean_nats, mean_nats
    weighted = nats
    if loss.focal_gamma:
        # By rounding the nats of a certain symbol may lie below zero.
        missing = ops.relu(1.0 - ops.exp(-nats))
        weighted = ops.power(missing, loss.focal_gamma) * weighted
    if loss.byte_weighted:
        if SYMBOL_WEIGHTS not in params:
            raise RunError("training.loss.byte_weighted: the engine was given no weights of the symbols")
        weighted = ops.embedding(params[SYMBOL_WEIGHTS], x_BT, "float32")[..., 0] * weighted
    objective = ops.sum(weighted) / count
    if loss.z_weight:
        total = ops.softcapped_logsumexp(logits, spec.model.logit_softcap)
        objective = objective + loss.z_weight * (ops.sum(total * total) / count)
    if h_BND is not None:
        objective = objective + auxiliary_loss(ops, spec, params, stored, h_BND, x_BT)
    return objective, mean_nats


def symbol_weights(symbol_bytes: np.ndarray, mean_bytes: float) -> np.ndarray:
    """The weight of every symbol, float32 [V, 1], from its bytes [V] and the mean bytes of a symbol of the text.

    max(0.1, bytes / mean), not divided by the sum of weights: 1 on average, but for the floor.
    """
    weights = np.maximum(LEAST_SYMBOL_WEIGHT, np.asarray(symbol_bytes, np.float64) / mean_bytes)
    return weights.astype(np.float32)[:, None]
