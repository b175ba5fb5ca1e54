"""A switch of quantisation-aware training that never acts: planted."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.forward import Forward, forward
from shared.model.qat import quantised_matrices, training_weights
from shared.model.stages import RUN_PREFIX
from shared.model.training_loss import training_loss
from shared.ops import Array, Ops
from shared.spec import Spec
from shared.spec.qat import QatSpec


class Switch:
    """A flag in a class, as four published systems had it. Training code sets it when quantisation is to begin."""

    is_on = False


def without_qat(spec: Spec) -> Spec:
    """The spec without quantisation in training."""
    off = QatSpec(bits=spec.training.qat.bits)
    return spec.model_copy(update={"training": spec.training.model_copy(update={"qat": off})})


def flagged_loss(
    ops: Ops, spec: Spec, params: Mapping[str, Array], x_BT: Array, model: Forward = forward
) -> tuple[Array, Array]:
    """`shared.model.training_loss` that asks the flag: a compiled function did so when it was compiled."""
    weights = {name: value for name, value in params.items() if not name.startswith(RUN_PREFIX)}
    if Switch.is_on:
        weights = training_weights(ops, spec, weights, quantised_matrices(spec), x_BT)
    plain = without_qat(spec)
    return training_loss(ops, plain, weights, x_BT, model)
