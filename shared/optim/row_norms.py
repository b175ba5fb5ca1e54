"""Normalises the rows or columns of a Muon update: MuonEq-R before orthogonalisation, NorMuon after it.

Source: docs/techniques.md 9.3, 9.4. Shapes: K matrices of one shape [R, C] in a stack.
"""

from __future__ import annotations

from shared.ops import Array, Ops

ROW_NORM_MIN = 1e-7
SECOND_MOMENT_MIN = 1e-10
NORM_MIN = 1e-10


def normalise_rows(ops: Ops, update: Array) -> Array:
    """MuonEq-R: each row of [K, R, C] divided by max(its L2 norm, 1e-7), so that all rows weigh the same."""
    norms = ops.sqrt(ops.sum(update * update, axes=(-1,), keepdims=True))
    return update / _at_least(ops, norms, ROW_NORM_MIN)


def second_moment_shape(rows: int, columns: int) -> tuple[int, int]:
    """Shape of NorMuon's state of a matrix [R, C]: one number a row, or a column where those are more."""
    return (rows, 1) if rows >= columns else (1, columns)


def normalise_neurons(ops: Ops, orthogonal: Array, second: Array, beta2: float) -> tuple[Array, Array]:
    """NorMuon: (rescaled update [K, R, C], new second moments [K, R, 1] or [K, 1, C]).

    s = beta2 s + (1 - beta2) mean(O^2) along each row (or column); O' = O / sqrt(max(s, 1e-10)), rescaled to the
    Frobenius norm of O. Because the norm is restored, s needs no bias correction.
    """
    rows, columns = orthogonal.shape[-2], orthogonal.shape[-1]
    axis, length = (-1, columns) if rows >= columns else (-2, rows)
    mean_square = ops.sum(orthogonal * orthogonal, axes=(axis,), keepdims=True) / length
    second = beta2 * second + (1.0 - beta2) * mean_square
    scaled = orthogonal / ops.sqrt(_at_least(ops, second, SECOND_MOMENT_MIN))
    # A matrix without a gradient has norm 0 before and after; the limit keeps it 0.
    return scaled * (_norm(ops, orthogonal) / _at_least(ops, _norm(ops, scaled), NORM_MIN)), second


def _norm(ops: Ops, x: Array) -> Array:
    """Frobenius norm of each matrix, [K, 1, 1]."""
    return ops.sqrt(ops.sum(x * x, axes=(-2, -1), keepdims=True))


def _at_least(ops: Ops, x: Array, limit: float) -> Array:
    """max(x, limit), exactly."""
    return 0.0 - ops.minimum(0.0 - x, -limit)
