"""The torch training engine: compiled functions, devices and state behind shared.engine.Engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from cuda_train import device, distributed
from cuda_train.ops import make_ops
from shared.engine import StepResult, Weights
from shared.engine_state import EngineState
from shared.microbatch import micro_batches
from shared.model import Forward, forward, log_probs, mean_nats, parameter_manifest, symbol_nats
from shared.optim import HYPERPARAMETERS, optimizer_step, orthogonalise, squared_norms
from shared.ranks import OneRank, Ranks
from shared.spec import Spec

Arrays = dict[str, torch.Tensor]


class TrainingEngine(EngineState):
    """One model with its optimizer state on one device, alone or as one of several ranks. See shared.engine.Engine.

    Weights and state stay where they are in memory: a step changes them in place.
    """

    name = "torch"

    def __init__(self, spec: Spec, model: Forward = forward, ranks: Ranks | None = None) -> None:
        super().__init__(spec, model, make_ops(), ranks or OneRank())
        self._device = device.default_device()
        self._loss = _Loss(self)
        self.params = self._loss.named
        self._ranked_loss = self._with_ranks(self._loss)
        self._mean_nats = self._compile(self._ranked_loss)
        self._update = self._compile(self._update_in_place)
        self._score = self._compile(lambda params, x: symbol_nats(self.ops, spec, params, x, model))
        self._log_probs = self._compile(lambda params, x: log_probs(self.ops, spec, params, x, model))

    def warm_up(self, x: np.ndarray) -> None:
        before = [value.detach().clone() for value in self._tensors()]
        self.train_step(x, dict.fromkeys(HYPERPARAMETERS, 1.0))
        with torch.no_grad():
            torch._foreach_copy_(self._tensors(), before)

    def train_step(self, x: np.ndarray, hyper: Mapping[str, float]) -> StepResult:
        with distributed.contact(self.ranks.rank):
            loss = self._backward(x)
            with torch.no_grad():
                scalars = dict(zip(hyper, device.to_device(np.array(list(hyper.values()), np.float32)), strict=True))
                squares = self._update(self.params, self._gradients(), self.state, scalars)
                read = device.read_later(torch.cat([loss.reshape(1), squares]))
        return lambda: self._checked(read())

    def gradients(self, x: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        loss = self._backward(x)
        return float(loss.item()), self._to_host(self._gradients())

    def score(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.ops.to_numpy(self._score(self._scored(), self._symbols(x)))

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.ops.to_numpy(self._log_probs(self._scored(), self._symbols(x)))

    def peak_memory_bytes(self) -> int:
        return device.peak_memory_bytes()

    def synchronise(self) -> None:
        if device.on_gpu():
            torch.cuda.synchronize()

    def device_name(self) -> str:
        ranks = f", {self.ranks.world_size} ranks" if self.ranks.world_size > 1 else ""
        return device.device_name() + ranks

    def _adopt(self, weights: Weights, state: Weights) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.params[name].copy_(self.ops.asarray(value))
        self.state = self._to_device(state)

    def _tensors(self) -> list[torch.Tensor]:
        """Everything a step changes."""
        return [*self.params.values(), *self.state.values()]

    def _scored(self) -> Arrays:
        """The weights to score with, all as plain tensors, for which one compiled graph serves."""
        return {name: value.detach() for name, value in self._weights(self.scoring_kind).items()}

    def _symbols(self, x: np.ndarray) -> torch.Tensor:
        """Symbols on the device, int32."""
        return device.to_device(np.ascontiguousarray(x, np.int32))

    def _backward(self, x: np.ndarray) -> torch.Tensor:
        """Mean loss of the batch; its gradient is in `_gradients` afterwards. x is this rank's share of the batch.

        One micro-batch after the other; ranks exchange gradients in the backward pass of the last one.
        """
        for value in self.params.values():
            value.grad = None
        parts = list(micro_batches(self.spec, x))
        total = torch.zeros((), device=self._device)
        for index, (share, part) in enumerate(parts):
            with contextlib.ExitStack() as stack:
                if isinstance(self._ranked_loss, DistributedDataParallel) and index < len(parts) - 1:
                    stack.enter_context(self._ranked_loss.no_sync())
                loss = share * self._mean_nats(self._symbols(part))
                loss.backward()
            total = total + loss.detach()
        return distributed.mean_over_ranks(total, self.ranks)

    def _gradients(self) -> Arrays:
        return {name: value.grad for name, value in self.params.items() if value.grad is not None}

    def _update_in_place(self, params: Arrays, grads: Arrays, state: Arrays, hyper: Arrays) -> torch.Tensor:
        """One optimizer step; returns the squared norm of each gradient."""
        shared_out = distributed.shared_orthogonalise if self.ranks.world_size > 1 else orthogonalise
        squares = squared_norms(self.ops, grads)
        norm = torch.sqrt(squares.sum())
        new_params, new_state = optimizer_step(self.ops, self.spec, params, grads, state, norm, hyper, shared_out)
        for name, value in new_params.items():
            params[name].copy_(value)
        for name, value in new_state.items():
            state[name].copy_(value)
        return squares

    def _with_ranks(self, loss: torch.nn.Module) -> torch.nn.Module:
        """The loss as a module. Its backward pass averages gradients over the ranks, bucket by bucket while it runs."""
        if self.ranks.world_size == 1:
            return loss
        devices = [self._device] if device.on_gpu() else None
        return DistributedDataParallel(loss, device_ids=devices, gradient_as_bucket_view=True)

    def _compile(self, function: Callable) -> Callable:
        return torch.compile(function) if self.spec.training.compile else function


class _Loss(torch.nn.Module):
    """The training loss as a module that owns the float32 weights, as DistributedDataParallel wants it."""

    def __init__(self, engine: TrainingEngine) -> None:
        super().__init__()
        self.spec, self.ops, self.model = engine.spec, engine.ops, engine.model
        manifest = parameter_manifest(engine.spec)
        self.names = [parameter.name for parameter in manifest]
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(parameter.shape, device=device.default_device())) for parameter in manifest
        )

    @property
    def named(self) -> Arrays:
        """The weights by parameter name."""
        return dict(zip(self.names, self.weights, strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mean_nats(self.ops, self.spec, self.named, x, self.model)
