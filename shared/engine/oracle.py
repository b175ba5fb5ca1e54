"""The third engine, `numpy`: the float64 oracle, which scores but does not train."""

from __future__ import annotations

import numpy as np

from shared.engine.protocol import Stepper, Weights
from shared.engine.window_stepper import WindowStepper
from shared.model import Forward, ModelStepper, forward, log_probs, symbol_nats
from shared.ops import NumpyOps, Ops, SteppingOps
from shared.ops.numpy_stepping import NumpySteppingOps
from shared.spec import Spec


class Oracle:
    """The NumPy float64 Scorer: slow, plain, and independent of both frameworks. `ops` replaces NumPy's operations by
    those of an engine in float64."""

    def __init__(self, spec: Spec, weights: Weights, model: Forward = forward, ops: Ops | None = None) -> None:
        self.spec, self.model, self.ops = spec, model, ops or NumpyOps()
        self.params = {name: self.ops.asarray(value) for name, value in weights.items()}

    def score(self, x: np.ndarray) -> np.ndarray:
        return self.ops.to_numpy(symbol_nats(self.ops, self.spec, self.params, self.ops.asarray(x), self.model))

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        return self.ops.to_numpy(log_probs(self.ops, self.spec, self.params, self.ops.asarray(x), self.model))

    def stepper(self, rows: int) -> Stepper:
        if self.model is not forward:
            return WindowStepper(self, rows)
        stepping = NumpySteppingOps if isinstance(self.ops, NumpyOps) else SteppingOps
        return ModelStepper(self.ops, self.spec, self.params, rows, stepping)
