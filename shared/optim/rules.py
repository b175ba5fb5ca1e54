"""What updates one tensor, each of its numbers by itself: for everything, or for what Muon leaves (docs/techniques.md
9.5, 9.12).

By itself, because an engine may lay tensors of a group end to end, or stack them, and update them as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from shared.ops import Array, Ops
from shared.optim.adam import adam_update
from shared.optim.sgd import sgd_update
from shared.spec import OptimizerSpec


class Rule(NamedTuple):
    """`moments`: the kinds of state that the rule keeps of a tensor, each of its shape, zero at first.

    `update(ops, optimizer, param, grad, moments, lr, hyper, decay_factor)` gives the new param and the new moments;
    `hyper` holds the numbers HYPERPARAMETERS.
    """

    label: str
    moments: tuple[str, ...]
    update: Callable[..., tuple[Array, ...]]


def _adam(
    ops: Ops,
    optimizer: OptimizerSpec,
    param: Array,
    grad: Array,
    moments: Sequence[Array],
    lr: Array,
    hyper: Mapping[str, Array],
    decay_factor: Array | float,
) -> tuple[Array, ...]:
    first, second = moments
    corrections = hyper["first_correction"], hyper["second_correction"]
    return adam_update(ops, optimizer, param, grad, first, second, lr, *corrections, decay_factor)


def _sgd(
    ops: Ops,
    optimizer: OptimizerSpec,
    param: Array,
    grad: Array,
    moments: Sequence[Array],
    lr: Array,
    hyper: Mapping[str, Array],
    decay_factor: Array | float,
) -> tuple[Array, ...]:
    return sgd_update(param, grad, moments[0], lr, hyper["momentum"])


ADAM = Rule("Adam", ("first", "second"), _adam)
# By optimizer.form. With Muon it is the rule of all but the matrices.
RULES = {"muon": ADAM, "adam": ADAM, "sgd": Rule("SGD", ("momentum",), _sgd)}
