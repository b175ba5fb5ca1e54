"""The MLX training engine: compiled functions, devices and state behind shared.engine.Engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np

from mlx_train import device
from mlx_train.ops import make_ops
from shared.engine import NonFiniteError, Weights, WeightsKind, split_state
from shared.microbatch import micro_batch_rows
from shared.model import Forward, forward, log_probs, mean_nats, symbol_nats
from shared.optim import global_norm, initial_state, optimizer_step
from shared.spec import Spec

Arrays = dict[str, mx.array]


class TrainingEngine:
    """One model with its optimizer state on the default MLX device. See shared.engine.Engine."""

    name = "mlx"

    def __init__(self, spec: Spec, model: Forward = forward) -> None:
        self.spec, self.model, self.ops = spec, model, make_ops()
        self.params: Arrays = {}
        self.state: Arrays = {}
        self.scoring_kind: WeightsKind = "trained"
        self._gradients = self._compile(mx.value_and_grad(self._loss))
        self._update = self._compile(self._optimizer_step)
        self._score = self._compile(lambda params, x: symbol_nats(self.ops, spec, params, x, model))
        self._log_probs = self._compile(lambda params, x: log_probs(self.ops, spec, params, x, model))

    def initialise(self, weights: Weights) -> None:
        self.params = self._to_device(weights)
        self.state = self._to_device(initial_state(self.spec, weights))

    def train_step(self, x: np.ndarray, hyper: Mapping[str, float]) -> tuple[float, float]:
        loss, grads = self._accumulated_gradients(x)
        norm = global_norm(self.ops, grads)
        self._check_finite(loss, norm, grads)
        scalars = {name: mx.array(value, mx.float32) for name, value in hyper.items()}
        self.params, self.state = self._update(self.params, grads, self.state, norm, scalars)
        mx.eval(self.params, self.state)
        return float(loss.item()), float(norm.item())

    def gradients(self, x: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        """(mean nats per symbol, float32 gradients by name) of the current weights on x [B, T]."""
        loss, grads = self._accumulated_gradients(x)
        return float(loss.item()), self._to_host(grads)

    def use_weights(self, kind: WeightsKind) -> None:
        self.scoring_kind = kind

    def score(self, x: np.ndarray) -> np.ndarray:
        return self.ops.to_numpy(self._score(self._weights(self.scoring_kind), self.ops.asarray(x)))

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        return self.ops.to_numpy(self._log_probs(self._weights(self.scoring_kind), self.ops.asarray(x)))

    def export_weights(self, kind: WeightsKind) -> dict[str, np.ndarray]:
        return self._to_host(self._weights(kind))

    def save_state(self) -> dict[str, np.ndarray]:
        return self._to_host({**{f"weight/{name}": value for name, value in self.params.items()}, **self.state})

    def load_state(self, state: Weights) -> None:
        weights, rest = split_state(self.spec, state)
        self.params, self.state = self._to_device(weights), self._to_device(rest)

    def peak_memory_bytes(self) -> int:
        return device.peak_memory_bytes()

    def synchronise(self) -> None:
        mx.synchronize()

    def device_name(self) -> str:
        return device.device_name()

    def _loss(self, params: Arrays, x: mx.array) -> mx.array:
        return mean_nats(self.ops, self.spec, params, x, self.model)

    def _optimizer_step(self, params: Arrays, grads: Arrays, state: Arrays, norm: mx.array, hyper: Arrays) -> tuple:
        return optimizer_step(self.ops, self.spec, params, grads, state, norm, hyper)

    def _accumulated_gradients(self, x: np.ndarray) -> tuple[mx.array, Arrays]:
        """Gradients of the mean over the whole batch, one evaluated micro-batch after the other, so that
        the lazy graph never holds more than one."""
        rows = micro_batch_rows(self.spec, len(x))
        total_loss = mx.array(0.0)
        total: Arrays = {}
        for first in range(0, len(x), rows):
            part = x[first : first + rows]
            share = len(part) / len(x)
            loss, grads = self._gradients(self.params, self.ops.asarray(part))
            total_loss = total_loss + share * loss
            total = {name: share * grad + total[name] if total else share * grad for name, grad in grads.items()}
            mx.eval(total_loss, total)
        return total_loss, total

    def _check_finite(self, loss: mx.array, norm: mx.array, grads: Arrays) -> None:
        if not (np.isfinite(loss.item()) and np.isfinite(norm.item())):
            bad = [name for name, grad in grads.items() if not mx.all(mx.isfinite(grad)).item()]
            raise NonFiniteError(bad[0] if bad else next(iter(grads)))

    def _weights(self, kind: WeightsKind) -> Arrays:
        if kind == "averaged" and self.spec.training.ema_decay > 0:
            return {name: self.state[f"average/{name}"] for name in self.params}
        return self.params

    def _compile(self, function: Callable) -> Callable:
        return mx.compile(function) if self.spec.training.compile else function

    def _to_device(self, values: Weights) -> Arrays:
        return {name: self.ops.asarray(value) for name, value in values.items()}

    def _to_host(self, values: Mapping[str, mx.array]) -> dict[str, np.ndarray]:
        return {name: self.ops.to_numpy(value) for name, value in values.items()}
