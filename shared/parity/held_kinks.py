"""Kinks: a derivative that jumps has two values where its input is within rounding of the jump, and both are right.

The derivative of relu is 0 below zero and 1 above. Where the input is within rounding of zero, the order of a sum
decides which of the two an implementation takes, and the gradient of a whole unit appears or vanishes: 9e-4 of a
matrix's gradient was measured between two correct engines, nine times the tolerance. So the float64 oracle says which
inputs are undecided, and for these alone all engines take the oracle's side. Every other input keeps the engine's own
relu with its own derivative, and the tolerance stays what it is without kinks.

relu is the only operation of a training loss whose derivative jumps: that of the squared leaky relu is continuous, the
relu of the focal loss is multiplied by what is zero at its kink, and the losses take minima of whole numbers only.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from shared.engine.protocol import Engine
from shared.engine.synthetic import synthetic_engine
from shared.model import forward, parameter_manifest
from shared.ops import Array, NumpyOps, Ops, WrappedOps
from shared.parity.result import EXACT, ParityRow
from shared.spec import Spec


@dataclass(frozen=True)
class Sides:
    """The sides of the inputs of one relu: above zero or not, and whether that is undecided."""

    above: np.ndarray
    undecided: np.ndarray


class HeldKinks:
    """A forward pass with which all engines take undecided inputs to be on the same side of zero.

    An input is undecided where it is at most `band` times the root mean square over the inputs of its position. The
    oracle decides once for each row of symbols in each moment, with the weights of the engine that asks first.
    """

    def __init__(self, spec: Spec, band: float) -> None:
        self.spec, self.band = spec, band
        weights = {parameter.name: np.zeros(parameter.shape) for parameter in parameter_manifest(spec)}
        # Whether the model has any: one that has none is compared by the engines' ordinary forward pass.
        self.exist = bool(relu_inputs(spec, weights, np.zeros((1, spec.model.seq_len), np.int32)))
        self._moment: Hashable = None
        self._sides: dict[tuple[Hashable, bytes], list[Sides]] = {}
        self._differing: dict[str, int] = {}

    def engines(self, plain: Mapping[str, Engine]) -> Mapping[str, Engine]:
        """Engines, without weights, whose gradients can be compared: new ones, or the given ones if no kinks exist."""
        return {name: synthetic_engine(name, self.spec, self) for name in plain} if self.exist else plain

    def begin(self, moment: Hashable) -> None:
        """Announce other weights, those of `moment`, a name that all engines share, such as a step."""
        self._moment = moment

    def __call__(self, ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
        """Logits [B, T, V] of symbols x [B, T]: shared.model.forward."""
        rows = ops.to_numpy(x)
        keys = [(self._moment, row.tobytes()) for row in rows]
        missing = [index for index, key in enumerate(keys) if key not in self._sides]
        if missing:
            weights = {name: ops.to_numpy(value) for name, value in params.items()}
            inputs = relu_inputs(spec, weights, rows[missing])
            for row, index in enumerate(missing):
                self._sides[keys[index]] = [self._decide(each[row]) for each in inputs]
        held = HeldOps(ops, [_stacked(call) for call in zip(*(self._sides[key] for key in keys), strict=True)])
        logits = forward(cast(Ops, held), spec, params, x)
        self._differing[ops.name] = self._differing.get(ops.name, 0) + held.differing
        return logits

    def rows(self, of: str) -> list[ParityRow]:
        """How many decided inputs each engine had on another side than the oracle, which none may have, and how many
        were undecided; no row if no kinks exist. `of` names what was evaluated."""
        worst = f"{self.note}, within {self.band:.0e} of zero"
        return [
            ParityRow(f"relu sides, {of}", f"numpy - {name}", count, EXACT, "inputs differ", worst)
            for name, count in self._differing.items()
        ]

    @property
    def note(self) -> str:
        """How many inputs are undecided, as text; empty if no kinks exist."""
        calls = [sides.undecided for row in self._sides.values() for sides in row]
        undecided, count = sum(int(call.sum()) for call in calls), sum(call.size for call in calls)
        return f"{undecided:,} of {count:,} relu inputs undecided" if self.exist else ""

    def _decide(self, inputs: np.ndarray) -> Sides:
        size = np.sqrt(np.mean(inputs * inputs, axis=-1, keepdims=True))
        return Sides(inputs > 0, np.abs(inputs) <= self.band * size)


class HeldOps(WrappedOps):
    """Takes the sides of undecided inputs from a list, one for each relu."""

    def __init__(self, ops: Ops, sides: list[Sides]) -> None:
        super().__init__(ops)
        self._sides = iter(sides)
        self.differing = 0

    def relu(self, x: Array) -> Array:
        """The engine's own relu of decided inputs; of undecided ones x where the oracle has it above zero, else 0."""
        sides = next(self._sides)
        self.differing += int(np.sum(((self.ops.to_numpy(x) > 0) != sides.above) & ~sides.undecided))
        if not sides.undecided.any():
            return self.ops.relu(x)
        own, held = (
            self.ops.asarray(mask.astype(np.float32)) for mask in (~sides.undecided, sides.undecided & sides.above)
        )
        return own * self.ops.relu(x) + held * x


class RecordingRelu(NumpyOps):
    """The oracle, keeping the input of every relu in the order of the calls."""

    def __init__(self) -> None:
        self.inputs: list[np.ndarray] = []

    def relu(self, x: np.ndarray) -> np.ndarray:
        self.inputs.append(x)
        return super().relu(x)


def relu_inputs(spec: Spec, weights: Mapping[str, np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """The inputs, float64 [B, ...], of every relu in one forward pass over x [B, T], in order; often none."""
    ops = RecordingRelu()
    forward(ops, spec, {name: ops.asarray(value) for name, value in weights.items()}, ops.asarray(x))
    return ops.inputs


def _stacked(call: tuple[Sides, ...]) -> Sides:
    """One call's sides of several rows."""
    return Sides(np.stack([each.above for each in call]), np.stack([each.undecided for each in call]))
