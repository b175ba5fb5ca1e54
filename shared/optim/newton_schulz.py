"""Orthogonalisation of a matrix by Newton-Schulz iteration, and its published coefficients (docs/techniques.md 9.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared.ops import Array, Ops
from shared.spec.optimizer import NSCoefficients

# (ops, stack of matrices [K, R, C], steps, dtype, coefficients) -> [K, R, C] float32; an engine may share it out
# between ranks.
Orthogonalise = Callable[[Ops, Array, int, str, NSCoefficients], Array]


@dataclass(frozen=True)
class NewtonSchulz:
    """(a, b, c) of each iteration, the last one for all further ones; the matrix is first divided by its Frobenius
    norm times `norm_factor` plus `norm_eps`."""

    coefficients: tuple[tuple[float, float, float], ...]
    norm_factor: float
    norm_eps: float

    def steps(self, count: int) -> list[tuple[float, float, float]]:
        """(a, b, c) of `count` iterations, count at least 1."""
        return [self.coefficients[min(step, len(self.coefficients) - 1)] for step in range(count)]


NEWTON_SCHULZ: dict[NSCoefficients, NewtonSchulz] = {
    "quintic": NewtonSchulz(((3.4445, -4.7750, 2.0315),), 1.0, 1e-7),
    # The best polynomial for each iteration in turn. Its norm leaves 2 % of room for rounding.
    "polar_express": NewtonSchulz(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        1.02,
        1e-6,
    ),
}


def orthogonalise(ops: Ops, update: Array, steps: int, dtype: str, coefficients: NSCoefficients = "quintic") -> Array:
    """Newton-Schulz iteration on a stack of matrices [K, R, C], computed in `dtype`, returned in float32.

    X = U / (|U|_F f + eps); then `steps` times A = X X', X = aX + (bA + cA^2) X. Tall matrices are
    transposed first, so that A is the smaller square. Singular values end near 1, not at it.
    """
    iteration = NEWTON_SCHULZ[coefficients]
    rows, columns = update.shape[-2], update.shape[-1]
    norm = ops.sqrt(ops.sum(update * update, axes=(-2, -1), keepdims=True))
    x = ops.cast(update / (norm * iteration.norm_factor + iteration.norm_eps), dtype)
    if rows > columns:
        x = ops.transpose(x)
    for a, b, c in iteration.steps(steps):
        gram = x @ ops.transpose(x)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    if rows > columns:
        x = ops.transpose(x)
    return ops.cast(x, "float32")
