"""From logits to log-probabilities: the softcap, then a temperature and a bias if an artifact has them
(docs/techniques.md 11.11).

    log p = log_softmax(softcap(z) / T + b)

T and b are fitted to packed weights (shared.artifact.logit_fit), so they are no parameters of the model: training has
none, and weights without them are scored with T = 1 and b = 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shared.errors import ArtifactError
from shared.model.manifest import ONES, ZEROS, Parameter, parameter_manifest
from shared.ops import Array, Ops
from shared.spec import Spec

TEMPERATURE, BIAS = "logits.temperature", "logits.bias"
LEAST_TEMPERATURE, MOST_TEMPERATURE, MOST_BIAS = 0.25, 4.0, 4.0
LOGIT_RANGES = {TEMPERATURE: (LEAST_TEMPERATURE, MOST_TEMPERATURE), BIAS: (-MOST_BIAS, MOST_BIAS)}
"""What a fit may give: log-probabilities are finite for all of it."""


def logit_parameters(spec: Spec) -> tuple[Parameter, ...]:
    """What an artifact of the spec holds beside its model: T [1] and b [V], at first 1 and 0."""
    temperature = Parameter(TEMPERATURE, (1,), ONES, "scalar", "control")
    bias = Parameter(BIAS, (spec.vocabulary.size,), ZEROS, "scalar", "control")
    return {"none": (), "temperature": (temperature,), "temperature_bias": (temperature, bias)}[spec.artifact.logits]


def packed_parameters(spec: Spec) -> tuple[Parameter, ...]:
    """All that an artifact of the spec holds, in order."""
    return (*parameter_manifest(spec), *logit_parameters(spec))


def check_logits(weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ArtifactError for a T or b that no fit gives."""
    for name, (least, most) in LOGIT_RANGES.items():
        values = weights.get(name, np.zeros(0))
        if not ((values >= least) & (values <= most)).all():
            raise ArtifactError(
                f"tensor {name}: {values.min():.4g} to {values.max():.4g}, must be {least:g} to {most:g}"
            )


def nats_of_logits(ops: Ops, spec: Spec, params: Mapping[str, Array], logits: Array, x_BT: Array) -> Array:
    """-ln p(x[:, t]) of logits [B, T, V] before the softcap: [B, T] float32, nats."""
    nats = ops.softcapped_cross_entropy(logits, x_BT, spec.model.logit_softcap)
    if TEMPERATURE not in params:
        return nats
    chosen = -nats / params[TEMPERATURE]
    if BIAS in params:
        chosen = chosen + ops.embedding(params[BIAS][:, None], x_BT, "float32")[..., 0]
    return _log_sum_exp(ops, _adjusted(ops, spec, params, logits))[..., 0] - chosen


def log_probs_of_logits(ops: Ops, spec: Spec, params: Mapping[str, Array], logits: Array) -> Array:
    """ln p(v) of logits [..., V] before the softcap: [..., V] float32."""
    if TEMPERATURE not in params:
        return ops.softcapped_log_softmax(logits, spec.model.logit_softcap)
    adjusted = _adjusted(ops, spec, params, logits)
    return adjusted - _log_sum_exp(ops, adjusted)


def _adjusted(ops: Ops, spec: Spec, params: Mapping[str, Array], logits: Array) -> Array:
    """log softmax(softcap(z)) / T + b, which is softcap(z) / T + b but for a constant of each distribution."""
    log_probs = ops.softcapped_log_softmax(logits, spec.model.logit_softcap) / params[TEMPERATURE]
    return log_probs + params[BIAS] if BIAS in params else log_probs


def _log_sum_exp(ops: Ops, x: Array) -> Array:
    """ln of the sum of e^x over the last axis, which is kept. With T and b in their ranges it is finite and not 0."""
    return ops.log(ops.sum(ops.exp(x), axes=(-1,), keepdims=True))
