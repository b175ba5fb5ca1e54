"""Shares out bytes among tensors at the least predicted loss (docs/techniques.md 12.5).

At the optimum a byte is worth the same loss in every tensor, so one price of a bit decides all: each tensor takes the
setting with the least loss plus price times bits. For steps below an entropy coder that is the rule of equal
sensitivity times step squared; for widths it is the greedy choice by loss per byte, on the convex hull.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.artifact.curves import Curve
from shared.spec import QuantiserSpec

PRICE_HALVINGS = 80


@dataclass(frozen=True)
class Choice:
    """A setting of one tensor with the bits and nats that it is predicted to take. `curve` is the index of its method
    among those of the tensor, `value` that of its dial."""

    settings: QuantiserSpec
    curve: int
    value: float
    bits: float
    nats: float


class Options:
    """Everything that one tensor may become: the values of the dials of its curves, with bits and nats of each."""

    def __init__(self, curves: Sequence[Curve], nats_per_error: float) -> None:
        self.curves = [curve.filled() for curve in curves]
        self._sizes = [len(curve.values) for curve in self.curves]
        self.bits: NDArray[np.float64] = np.concatenate([curve.bits for curve in self.curves])
        self.nats: NDArray[np.float64] = nats_per_error * np.concatenate([curve.errors for curve in self.curves])

    def choice(self, index: int) -> Choice:
        """The option at an index of `bits` and `nats`."""
        curve, bits, nats = 0, float(self.bits[index]), float(self.nats[index])
        while index >= self._sizes[curve]:
            index -= self._sizes[curve]
            curve += 1
        value = float(self.curves[curve].values[index])
        return Choice(self.curves[curve].settings(value), curve, value, bits, nats)

    def best(self, price: float) -> int:
        """The option with the least nats + price * bits; of equal ones that with the fewest bits."""
        costs = self.nats + price * self.bits
        return int(min(np.flatnonzero(costs == costs.min()), key=lambda index: self.bits[index]))

    def upgrade(self, index: int, most_bits: float) -> tuple[float, int] | None:
        """The best (nats saved per bit, option) that takes at most `most_bits` more than an option, if one does."""
        more, saved = self.bits - self.bits[index], self.nats[index] - self.nats
        usable = np.flatnonzero((more > 0) & (more <= most_bits) & (saved > 0))
        if not len(usable):
            return None
        rates = saved[usable] / more[usable]
        best = int(np.argmax(rates))
        return float(rates[best]), int(usable[best])


def allocate(options: Mapping[str, Options], target_bits: float) -> dict[str, Choice]:
    """The choice for every tensor with the least nats in all and at most `target_bits`, or the fewest bits there are.

    The price is found by bisection; what is left over then goes where it saves most.
    """
    low, high = -40.0, 80.0  # log2 of 2^40 over the largest price of a bit, and the other way round
    scale = max(float(each.nats.max() / max(1.0, each.bits.min())) for each in options.values())

    def indices(log_price: float) -> dict[str, int]:
        return {name: each.best(scale * 2.0**-log_price) for name, each in options.items()}

    def total(chosen: Mapping[str, int]) -> float:
        return float(sum(options[name].bits[index] for name, index in chosen.items()))

    chosen = {name: int(np.argmin(each.bits)) for name, each in options.items()}
    for _ in range(PRICE_HALVINGS):
        middle = (low + high) / 2
        tried = indices(middle)
        if total(tried) <= target_bits:
            low, chosen = middle, tried
        else:
            high = middle
    left = target_bits - total(chosen)
    while left > 0:
        found = [(upgrade, name) for name, index in chosen.items() if (upgrade := options[name].upgrade(index, left))]
        if not found:
            break
        (_, index), name = max(found)
        left -= float(options[name].bits[index] - options[name].bits[chosen[name]])
        chosen[name] = index
    return {name: options[name].choice(index) for name, index in chosen.items()}
