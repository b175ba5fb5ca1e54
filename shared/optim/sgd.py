"""Stochastic gradient descent with momentum (docs/techniques.md 9.12)."""

from __future__ import annotations

from shared.ops import Array


def sgd_update(param: Array, grad: Array, before: Array, lr: Array, momentum: Array) -> tuple[Array, Array]:
    """New (param, momentum) of one tensor of any shape: m = momentum * m + g; p = p - lr * m. Starts at m = 0."""
    moving = momentum * before + grad
    return param - lr * moving, moving
