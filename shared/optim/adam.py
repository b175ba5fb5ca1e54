"""Adam with bias correction, eps outside the root and decoupled weight decay (docs/techniques.md 9.5)."""

from __future__ import annotations

from shared.ops import Array, Ops
from shared.optim.decay import decayed
from shared.spec import OptimizerSpec


def adam_update(
    ops: Ops,
    optimizer: OptimizerSpec,
    param: Array,
    grad: Array,
    first: Array,
    second: Array,
    lr: Array,
    first_correction: Array,
    second_correction: Array,
    decay_factor: Array | float = 1.0,
) -> tuple[Array, Array, Array]:
    """New (param, first moment, second moment) of one tensor of any shape.

    The corrections are 1 - beta^t for step t counted from 1. p = p (1 - lr * decay) - lr * m^ / (sqrt(v^) + eps).
    """
    beta1, beta2 = optimizer.adam_beta1, optimizer.adam_beta2
    first = beta1 * first + (1.0 - beta1) * grad
    second = beta2 * second + (1.0 - beta2) * grad * grad
    direction = (first / first_correction) / (ops.sqrt(second / second_correction) + optimizer.adam_eps)
    decay = optimizer.adam_weight_decay * decay_factor
    kept = decayed(ops, param, direction, lr, decay, optimizer.adam_cautious_decay)
    return kept - lr * direction, first, second
