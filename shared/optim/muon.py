"""Muon: momentum, then the nearest semi-orthogonal matrix, for every weight matrix (FEATURES 3.5)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from shared.ops import Array, Ops
from shared.spec import OptimizerSpec

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NORM_EPS = 1e-7

# (ops, stack of matrices [K, R, C], steps, dtype) -> [K, R, C] float32; an engine may share it out between ranks.
Orthogonalise = Callable[[Ops, Array, int, str], Array]


def orthogonalise(ops: Ops, update: Array, steps: int, dtype: str) -> Array:
    """Newton-Schulz iteration on a stack of matrices [K, R, C], computed in `dtype`, returned in float32.

    X = U / (|U|_F + 1e-7); then `steps` times A = X X', X = aX + (bA + cA^2) X. Tall matrices are
    transposed first, so that A is the smaller square. Singular values end near 1, not at it.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    rows, columns = update.shape[-2], update.shape[-1]
    norm = ops.sqrt(ops.sum(update * update, axes=(-2, -1), keepdims=True))
    x = ops.cast(update / (norm + NORM_EPS), dtype)
    if rows > columns:
        x = ops.transpose(x)
    for _ in range(steps):
        gram = x @ ops.transpose(x)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    if rows > columns:
        x = ops.transpose(x)
    return ops.cast(x, "float32")


def muon_update(
    ops: Ops,
    optimizer: OptimizerSpec,
    params: Mapping[str, Array],
    grads: Mapping[str, Array],
    momenta: Mapping[str, Array],
    lr: Array,
    momentum: Array,
    orthogonalise: Orthogonalise = orthogonalise,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """New params and momenta of the given matrices [R, C].

    m = momentum * m + g; u = g + momentum * m (Nesterov); p = p (1 - lr * decay) - lr * max(1, R/C)^0.5 * O(u).
    Matrices of one shape are orthogonalised as one batch.
    """
    new_momenta = {name: momentum * momenta[name] + grads[name] for name in params}
    new_params: dict[str, Array] = {}
    for names in _by_shape(params):
        updates = ops.stack([grads[name] + momentum * new_momenta[name] for name in names])
        orthogonal = orthogonalise(ops, updates, optimizer.ns_steps, optimizer.ns_dtype)
        rows, columns = params[names[0]].shape
        gain = max(1.0, rows / columns) ** 0.5
        keep = 1.0 - lr * optimizer.muon_weight_decay
        for index, name in enumerate(names):
            new_params[name] = params[name] * keep - (lr * gain) * orthogonal[index]
    return new_params, new_momenta


def _by_shape(params: Mapping[str, Array]) -> Sequence[list[str]]:
    """Names grouped by matrix shape, in order of first appearance."""
    groups: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, value in params.items():
        groups[tuple(value.shape)].append(name)
    return list(groups.values())
