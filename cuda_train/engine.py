"""The torch training engine: compiled functions, devices and state behind shared.engine.Engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from cuda_train import device
from cuda_train.ops import make_ops
from shared.engine import NonFiniteError
from shared.engine_state import EngineState
from shared.microbatch import micro_batches
from shared.model import Forward, forward, log_probs, mean_nats, symbol_nats
from shared.optim import HYPERPARAMETERS, global_norm, optimizer_step
from shared.spec import Spec

Arrays = dict[str, torch.Tensor]


class TrainingEngine(EngineState):
    """One model with its optimizer state on one device. See shared.engine.Engine."""

    name = "torch"

    def __init__(self, spec: Spec, model: Forward = forward) -> None:
        super().__init__(spec, model, make_ops())
        self._loss_function = self._compile(lambda params, x: mean_nats(self.ops, spec, params, x, model))
        self._update = self._compile(self._optimizer_step)
        self._score = self._compile(lambda params, x: symbol_nats(self.ops, spec, params, x, model))
        self._log_probs = self._compile(lambda params, x: log_probs(self.ops, spec, params, x, model))

    def warm_up(self, x: np.ndarray) -> None:
        _, grads = self._batch_gradients(x)
        with torch.no_grad():
            self._updated(grads, global_norm(self.ops, grads), dict.fromkeys(HYPERPARAMETERS, 1.0))

    def train_step(self, x: np.ndarray, hyper: Mapping[str, float]) -> tuple[float, float]:
        loss, grads = self._batch_gradients(x)
        with torch.no_grad():
            norm = global_norm(self.ops, grads)
            self._check_finite(loss, norm, grads)
            self.params, self.state = self._updated(grads, norm, hyper)
        return float(loss.item()), float(norm.item())

    def gradients(self, x: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        loss, grads = self._batch_gradients(x)
        return float(loss.item()), self._to_host(grads)

    def score(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.ops.to_numpy(self._score(self._weights(self.scoring_kind), self.ops.asarray(x)))

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.ops.to_numpy(self._log_probs(self._weights(self.scoring_kind), self.ops.asarray(x)))

    def peak_memory_bytes(self) -> int:
        return device.peak_memory_bytes()

    def synchronise(self) -> None:
        if device.on_gpu():
            torch.cuda.synchronize()

    def device_name(self) -> str:
        return device.device_name()

    def _optimizer_step(
        self, params: Arrays, grads: Arrays, state: Arrays, norm: torch.Tensor, hyper: Arrays
    ) -> tuple[Arrays, Arrays]:
        return optimizer_step(self.ops, self.spec, params, grads, state, norm, hyper)

    def _updated(self, grads: Arrays, norm: torch.Tensor, hyper: Mapping[str, float]) -> tuple[Arrays, Arrays]:
        """(params, state) after one optimizer step."""
        scalars = {name: self.ops.asarray(np.array(value, np.float32)) for name, value in hyper.items()}
        params, state = self._update(self.params, grads, self.state, norm, scalars)
        return params, state

    def _batch_gradients(self, x: np.ndarray) -> tuple[torch.Tensor, Arrays]:
        """Gradients of the mean over the whole batch, one micro-batch after the other."""
        leaves = {name: value.detach().requires_grad_(True) for name, value in self.params.items()}
        total_loss = self.ops.asarray(np.zeros((), np.float32))
        total: Arrays = {}
        for share, part in micro_batches(self.spec, x):
            loss = self._loss_function(leaves, self.ops.asarray(part))
            grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
            total_loss = total_loss + share * loss.detach()
            total = {name: share * grad + total[name] if total else share * grad for name, grad in grads.items()}
        return total_loss, total

    def _check_finite(self, loss: torch.Tensor, norm: torch.Tensor, grads: Arrays) -> None:
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            bad = [name for name, grad in grads.items() if not torch.isfinite(grad).all()]
            raise NonFiniteError(bad[0] if bad else next(iter(grads)))

    def _compile(self, function: Callable) -> Callable:
        return torch.compile(function) if self.spec.training.compile else function
