"""One optimizer step over all parameters: clip, Muon or one rule for each tensor, weight averages.

A pure function from (params, gradients, state, hyperparameters) to (params, state). The state is a
flat dict, `kind/parameter name`, so that checkpoints are engine-neutral:
`momentum/...` for Muon (with NorMuon also `second/...`), those of `shared.optim.rules`, and the weight averages of
`shared.optim.averaging`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from shared.model.adapters import trained_parameters
from shared.model.auxiliary import training_parameters
from shared.ops import Array, Ops
from shared.optim.averaging import average_shapes, initial_averages, update_averages
from shared.optim.muon import muon_state_shapes, muon_update
from shared.optim.newton_schulz import Orthogonalise, orthogonalise
from shared.optim.rules import RULES
from shared.optim.schedule import changes_decay
from shared.spec import OptimizerSpec, Spec

CLIP_EPS = 1e-6
# The prefix of weights in a checkpoint; that of the rest is its kind of state.
WEIGHTS = "weight/"


def state_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """The shape of everything that a run holds between two steps and a checkpoint stores, all of it float32: the
    weights as `weight/NAME`, those of training only included, then as `KIND/NAME` optimizer state and averages of what
    is trained."""
    shapes = {f"{WEIGHTS}{parameter.name}": parameter.shape for parameter in training_parameters(spec)}
    for parameter in trained_parameters(spec):
        if by_muon(spec.optimizer, parameter.group):
            kinds = muon_state_shapes(spec.optimizer, parameter.shape)
        else:
            kinds = dict.fromkeys(RULES[spec.optimizer.form].moments, parameter.shape)
        kinds |= average_shapes(spec.training, parameter.shape)
        shapes |= {f"{kind}/{parameter.name}": shape for kind, shape in kinds.items()}
    return shapes


def by_muon(optimizer: OptimizerSpec, group: str) -> bool:
    """Whether Muon updates the parameters of an optimizer group."""
    return group == "matrix" and optimizer.form == "muon"


def state_bytes(spec: Spec) -> int:
    """Bytes of all that `state_shapes` names."""
    return np.dtype(np.float32).itemsize * sum(map(math.prod, state_shapes(spec).values()))


def initial_state(spec: Spec, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Optimizer state before the first step, float32 by name: zeros, and the averages at the weights; none for
    what is frozen."""
    shapes = {name: shape for name, shape in state_shapes(spec).items() if not name.startswith(WEIGHTS)}
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for parameter in trained_parameters(spec):
        state |= initial_averages(spec.training, parameter.name, weights[parameter.name])
    assert state.keys() == shapes.keys()
    return state


def partition_parameters(spec: Spec, parts: int) -> list[list[str]]:
    """The names of all that is trained in `parts` lists of about equal optimizer work, each in manifest order.

    Orthogonalising a matrix costs its size times its smaller side; the rest costs its size.
    """
    manifest = trained_parameters(spec)
    cost = {
        parameter.name: parameter.count * (min(parameter.shape) if by_muon(spec.optimizer, parameter.group) else 1)
        for parameter in manifest
    }
    loads = [0] * parts
    owner: dict[str, int] = {}
    for name in sorted(cost, key=lambda name: -cost[name]):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += cost[name]
    return [[parameter.name for parameter in manifest if owner[parameter.name] == part] for part in range(parts)]


def optimizer_groups(spec: Spec) -> dict[str, str]:
    """The optimizer group of each parameter that is trained, by name in manifest order."""
    return {parameter.name: parameter.group for parameter in trained_parameters(spec)}


def squared_norms(ops: Ops, grads: Mapping[str, Array]) -> Array:
    """Squared L2 norm of each gradient, in the order of `grads`: [K] float32."""
    return ops.stack([ops.sum(grad * grad) for grad in grads.values()])


def global_norm(ops: Ops, grads: Mapping[str, Array]) -> Array:
    """L2 norm over all gradients together, a float32 scalar."""
    return ops.sqrt(ops.sum(squared_norms(ops, grads)))


def optimizer_step(
    ops: Ops,
    spec: Spec,
    params: Mapping[str, Array],
    grads: Mapping[str, Array],
    state: Mapping[str, Array],
    grad_norm: Array,
    hyper: Mapping[str, Array],
    orthogonalise: Orthogonalise = orthogonalise,
    groups: Mapping[str, str] | None = None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(new params, new state), all float32, of the parameters in `params`: all that is trained, or one part of a
    partition.

    `grad_norm` is the `global_norm` of all gradients; `hyper` holds the numbers HYPERPARAMETERS
    as scalars of the framework. `groups` is `optimizer_groups(spec)`, which a compiler need not follow.
    """
    optimizer = spec.optimizer
    decay_factor = hyper["decay_factor"] if changes_decay(spec.schedule) else 1.0
    if optimizer.grad_clip_norm > 0:
        factor = ops.minimum(optimizer.grad_clip_norm / (grad_norm + CLIP_EPS), 1.0)
        grads = {name: grad * factor for name, grad in grads.items()}
    groups = optimizer_groups(spec) if groups is None else groups
    matrices = {name: params[name] for name, group in groups.items() if by_muon(optimizer, group) and name in params}
    new_params, new_state = muon_update(
        ops, optimizer, matrices, grads, state, hyper["matrix_lr"], hyper["momentum"], orthogonalise, decay_factor
    )
    _, kinds, update = RULES[optimizer.form]
    for name, group in groups.items():
        if name not in params or name in matrices:
            continue
        moments = [state[f"{kind}/{name}"] for kind in kinds]
        new_params[name], *moments = update(
            ops, optimizer, params[name], grads[name], moments, hyper[f"{group}_lr"], hyper, decay_factor
        )
        new_state |= {f"{kind}/{name}": value for kind, value in zip(kinds, moments, strict=True)}
    assert new_params.keys() == params.keys() == grads.keys(), "optimizer groups must cover every parameter"
    new_state |= update_averages(spec.training, new_params, state, hyper["average_rate"], hyper["snapshot"])
    return {name: new_params[name] for name in params}, {name: new_state[name] for name in state}
