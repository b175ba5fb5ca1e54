"""What every engine holds, whatever its framework: weights, optimizer state, and which of them is scored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.engine import Weights, WeightsKind, split_state
from shared.model import Forward
from shared.ops import Array, Ops
from shared.optim import initial_state
from shared.spec import Spec

Arrays = dict[str, Array]


class EngineState:
    """The part of shared.engine.Engine that only moves arrays. The values are float32 on the device:
    `params` by parameter name, `state` by `KIND/parameter name`."""

    def __init__(self, spec: Spec, model: Forward, ops: Ops) -> None:
        self.spec, self.model, self.ops = spec, model, ops
        self.params: Arrays = {}
        self.state: Arrays = {}
        self.scoring_kind: WeightsKind = "trained"

    def initialise(self, weights: Weights) -> None:
        self.params = self._to_device(weights)
        self.state = self._to_device(initial_state(self.spec, weights))

    def use_weights(self, kind: WeightsKind) -> None:
        self.scoring_kind = kind

    def export_weights(self, kind: WeightsKind) -> dict[str, np.ndarray]:
        return self._to_host(self._weights(kind))

    def save_state(self) -> dict[str, np.ndarray]:
        return self._to_host({**{f"weight/{name}": value for name, value in self.params.items()}, **self.state})

    def load_state(self, state: Weights) -> None:
        weights, rest = split_state(self.spec, state)
        self.params, self.state = self._to_device(weights), self._to_device(rest)

    def _weights(self, kind: WeightsKind) -> Arrays:
        if kind == "averaged" and self.spec.training.ema_decay > 0:
            return {name: self.state[f"average/{name}"] for name in self.params}
        return self.params

    def _to_device(self, values: Weights) -> Arrays:
        return {name: self.ops.asarray(value) for name, value in values.items()}

    def _to_host(self, values: Mapping[str, Array]) -> dict[str, np.ndarray]:
        return {name: self.ops.to_numpy(value) for name, value in values.items()}
