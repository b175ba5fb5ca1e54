"""Low-rank adapters: the matrices that a model reads in place of those that have one (definition: shared.spec.lora).

The product of the factors is made once in a forward pass and added to the matrix. That costs rank * out * in operations
for a whole micro-batch, where the factors applied to every position would cost rank * (out + in) for each.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.errors import SpecError
from shared.model.auxiliary import AUXILIARY, training_parameters
from shared.model.manifest import ADAPTER_A, ADAPTER_B, Parameter
from shared.ops import Array, NumpyOps, Ops
from shared.spec import ModelSpec, Spec
from shared.spec.artifact import matches


def with_adapters(ops: Ops, model: ModelSpec, params: Mapping[str, Array]) -> Mapping[str, Array]:
    """params with W + (alpha / rank) B A in place of each adapted W, and without the factors.

    Applied to its own result it changes nothing.
    """
    lora = model.lora
    if not lora.rank:
        return params
    adapted = {}
    for name, value in params.items():
        if name.endswith((ADAPTER_A, ADAPTER_B)):
            continue
        stem = name.removesuffix(".weight")
        if f"{stem}{ADAPTER_A}" in params:
            a, b = params[f"{stem}{ADAPTER_A}"], params[f"{stem}{ADAPTER_B}"]
            value = value + (lora.alpha / lora.rank) * ops.linear(b, ops.transpose(a))
        adapted[name] = value
    return adapted


def folded(model: ModelSpec, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float32 weights of the same function without adapters: `with_adapters` of weights on the host, in float64."""
    ops = NumpyOps()
    full = with_adapters(ops, model, {name: ops.asarray(value) for name, value in weights.items()})
    return {name: np.asarray(value, np.float32) for name, value in full.items()}


def trained_parameters(spec: Spec, field: str = "training.parameters") -> tuple[Parameter, ...]:
    """The optimizer's parameters, in the order of `training_parameters`: all of them, unless the base is frozen or
    training.parameters names some. Raises SpecError where it names none; `field` is where its patterns come from."""
    parameters, patterns = training_parameters(spec), spec.training.parameters
    if spec.training.freeze == "base":
        parameters = tuple(each for each in parameters if each.group == "adapter" or each.name.startswith(AUXILIARY))
    if patterns == ("*",):
        return parameters
    found = tuple(each for each in parameters if any(matches(each.name, pattern) for pattern in patterns))
    if not found:
        raise SpecError(f"{field} = {list(patterns)}: matches no parameter that is trained")
    return found
