"""The state of an engine, whatever its framework: weights, optimizer state, and which of them is scored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.engine.protocol import NonFiniteError, Weights, WeightsKind
from shared.engine.ranks import Ranks
from shared.errors import RunError
from shared.model import Forward, trained_parameters, training_parameters, with_auxiliary
from shared.model.logits import BIAS, TEMPERATURE
from shared.model.stages import SYMBOL_WEIGHTS
from shared.ops import Array, Ops
from shared.optim import WEIGHTS, averaged_weights, initial_state, state_shapes
from shared.spec import Spec

Arrays = dict[str, Array]


def split_state(spec: Spec, state: Weights) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(weights by parameter name, optimizer state) out of one `Engine.save_state`, checked against the spec.

    Raises RunError naming the first tensor that is missing, unknown or of another shape.
    """
    expected = state_shapes(spec)
    for name in sorted(expected.keys() ^ state.keys()):
        problem = "missing from" if name in expected else "unknown in"
        raise RunError(f"tensor {name} is {problem} the checkpoint: it belongs to another spec")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise RunError(f"tensor {name} has shape {state[name].shape} in the checkpoint, the spec needs {shape}")
    weights = {name.removeprefix(WEIGHTS): state[name] for name in expected if name.startswith(WEIGHTS)}
    return weights, {name: state[name] for name in expected if not name.startswith(WEIGHTS)}


class EngineState:
    """The part of shared.engine.Engine that only moves arrays. The values are float32 on the device:
    `params` by parameter name, `state` by `KIND/parameter name`."""

    params: Arrays
    state: Arrays

    def __init__(self, spec: Spec, model: Forward, ops: Ops, ranks: Ranks) -> None:
        self.spec, self.model, self.ops, self.ranks = spec, model, ops, ranks
        # Names of what has gradients and is updated: all of `params` that is not frozen.
        self.trained = [parameter.name for parameter in trained_parameters(spec)]
        # What the loss reads apart from parameters and the numbers of a step, by names of shared.model.stages.
        self.tables: Arrays = {}
        # The temperature and bias of an artifact's logits, which are scored with and not trained.
        self.logits: Arrays = {}
        self.scoring_kind: WeightsKind = "trained"
        self.compiles = spec.training.compile

    def initialise(self, weights: Weights) -> None:
        # In the order of the manifest, whatever that of the file or message was: ranks exchange gradients in it.
        self.logits = self._to_device({name: weights[name] for name in (TEMPERATURE, BIAS) if name in weights})
        weights = with_auxiliary(self.spec, weights)
        ordered = {parameter.name: weights[parameter.name] for parameter in training_parameters(self.spec)}
        self._adopt(ordered, initial_state(self.spec, ordered))

    def use_symbol_weights(self, weights: np.ndarray) -> None:
        self.tables = {SYMBOL_WEIGHTS: self.ops.asarray(weights)}

    def use_weights(self, kind: WeightsKind) -> None:
        self.scoring_kind = kind

    def export_weights(self, kind: WeightsKind) -> dict[str, np.ndarray]:
        return self._to_host(self._weights(kind))

    def save_state(self) -> dict[str, np.ndarray]:
        return self._to_host({**{f"{WEIGHTS}{name}": value for name, value in self.params.items()}, **self.state})

    def load_state(self, state: Weights) -> None:
        weights, rest = split_state(self.spec, state)
        self._adopt(weights, rest)

    def _adopt(self, weights: Weights, state: Weights) -> None:
        """Put weights and optimizer state onto the device."""
        self.params, self.state = self._to_device(weights), self._to_device(state)

    def _checked(self, numbers: np.ndarray) -> tuple[float, float]:
        """(loss, gradient norm) out of [loss, squared gradient norm of each parameter]. Raises NonFiniteError."""
        loss, squares = float(numbers[0]), numbers[1:]
        if not np.isfinite(numbers).all():
            raise NonFiniteError(self.trained[int(np.argmin(np.isfinite(squares)))])
        return loss, float(np.sqrt(squares.sum()))

    def _weights(self, kind: WeightsKind) -> Arrays:
        if kind == "averaged":
            return averaged_weights(self.ops, self.spec.training, self.params, self.state) | self.logits
        return self.params | self.logits

    def _to_device(self, values: Weights) -> Arrays:
        return {name: self.ops.asarray(value) for name, value in values.items()}

    def _to_host(self, values: Mapping[str, Array]) -> dict[str, np.ndarray]:
        return {name: self.ops.to_numpy(value) for name, value in values.items()}
