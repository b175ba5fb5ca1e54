"""Decoupled weight decay, plain or cautious (docs/techniques.md 9.6)."""

from __future__ import annotations

from shared.ops import Array, Ops


def decayed(ops: Ops, param: Array, update: Array, lr: Array, decay: Array | float, cautious: bool) -> Array:
    """param times 1 - lr * decay; `cautious` only where the update, which is subtracted, has the sign of the weight.

    There the step goes towards zero already, and decay never works against it: p - 1[u p >= 0] lr decay p.
    """
    if not cautious:
        return param * (1.0 - lr * decay)
    return param * (1.0 - (lr * decay) * ops.unit_step(update * param))
