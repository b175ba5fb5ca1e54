"""Low-rank adapters: the matrices that a model reads in place of those that have one (definition: shared.spec.lora).

The product of the factors is made once in a forward pass and added to the matrix. That costs rank * out * in operations
for a whole micro-batch, where the factors applied to every position would cost rank * (out + in) for each.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.auxiliary import AUXILIARY, training_parameters
from shared.model.manifest import ADAPTER_A, ADAPTER_B, Parameter
from shared.ops import Array, Ops
from shared.spec import ModelSpec, Spec


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


def trained_parameters(spec: Spec) -> tuple[Parameter, ...]:
    """The optimizer's parameters, in the order of `training_parameters`: all of them, unless the base is frozen."""
    parameters = training_parameters(spec)
    if spec.training.freeze == "none":
        return parameters
    return tuple(each for each in parameters if each.group == "adapter" or each.name.startswith(AUXILIARY))
