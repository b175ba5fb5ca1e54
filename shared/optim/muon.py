"""Muon: momentum, then the nearest semi-orthogonal matrix, for every weight matrix (docs/techniques.md 9.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from shared.ops import Array, Ops
from shared.optim.decay import decayed
from shared.optim.newton_schulz import Orthogonalise, orthogonalise
from shared.optim.row_norms import normalise_neurons, normalise_rows, second_moment_shape
from shared.spec import OptimizerSpec


def muon_state_shapes(optimizer: OptimizerSpec, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Kinds of state of a matrix [R, C], all zero before the first step, with their shapes."""
    rows, columns = shape
    kinds: dict[str, tuple[int, ...]] = {"momentum": (rows, columns)}
    if optimizer.normuon:
        kinds["second"] = second_moment_shape(rows, columns)
    return kinds


def muon_update(
    ops: Ops,
    optimizer: OptimizerSpec,
    params: Mapping[str, Array],
    grads: Mapping[str, Array],
    state: Mapping[str, Array],
    lr: Array,
    momentum: Array,
    orthogonalise: Orthogonalise = orthogonalise,
    decay_factor: Array | float = 1.0,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """New params and new state (`KIND/NAME`, see `muon_state_shapes`) of the given matrices [R, C].

    m = momentum * m + g; u = g + momentum * m (Nesterov); p = p (1 - lr * decay) - lr * max(1, R/C)^0.5 * O(u).
    The norm of u does not matter, so this is also the form in which m is a mean instead of a sum.
    Matrices of one shape are orthogonalised as one batch. An entry may be such a batch itself, [K, R, C].
    """
    new_state = {f"momentum/{name}": momentum * state[f"momentum/{name}"] + grads[name] for name in params}
    new_params: dict[str, Array] = {}
    decay = optimizer.muon_weight_decay * decay_factor
    for names in _by_shape(params):
        each = [grads[name] + momentum * new_state[f"momentum/{name}"] for name in names]
        is_batch = len(each[0].shape) == 3
        updates = each[0] if is_batch else ops.stack(each)
        if optimizer.muon_row_normalise:
            updates = normalise_rows(ops, updates)
        orthogonal = orthogonalise(ops, updates, optimizer.ns_steps, optimizer.ns_dtype, optimizer.ns_coefficients)
        if optimizer.normuon:
            before = [state[f"second/{name}"] for name in names]
            second = before[0] if is_batch else ops.stack(before)
            orthogonal, second = normalise_neurons(ops, orthogonal, second, optimizer.normuon_beta2)
            for index, name in enumerate(names):
                new_state[f"second/{name}"] = second if is_batch else second[index]
        rows, columns = params[names[0]].shape[-2:]
        gain = max(1.0, rows / columns) ** 0.5
        for index, name in enumerate(names):
            update = orthogonal if is_batch else orthogonal[index]
            kept = decayed(ops, params[name], update, lr, decay, optimizer.muon_cautious_decay)
            new_params[name] = kept - (lr * gain) * update
    return new_params, new_state


def _by_shape(params: Mapping[str, Array]) -> Sequence[list[str]]:
    """Names grouped by matrix shape, in order of first appearance; each batch is a group of its own."""
    groups: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, value in params.items():
        groups[tuple(value.shape)].append(name)
    assert all(len(names) == 1 for shape, names in groups.items() if len(shape) == 3), "two batches of one shape"
    return list(groups.values())
