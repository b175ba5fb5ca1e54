"""The third engine, `numpy`: the float64 oracle, which scores but does not train."""

from __future__ import annotations

import numpy as np

from shared.engine.protocol import Stepper, Weights
from shared.engine.window_stepper import WindowStepper
from shared.model import Forward, forward, log_probs, symbol_nats
from shared.ops import NumpyOps
from shared.spec import Spec


class Oracle:
    """The NumPy float64 Scorer: slow, plain, and independent of both frameworks."""

    def __init__(self, spec: Spec, weights: Weights, model: Forward = forward) -> None:
        self.spec, self.model, self.ops = spec, model, NumpyOps()
        self.params = {name: self.ops.asarray(value) for name, value in weights.items()}

    def score(self, x: np.ndarray) -> np.ndarray:
        return symbol_nats(self.ops, self.spec, self.params, x, self.model)

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        return log_probs(self.ops, self.spec, self.params, x, self.model)

    def stepper(self, rows: int) -> Stepper:
        return WindowStepper(self, rows)
