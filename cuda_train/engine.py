"""The torch training engine: compiled functions, devices and state behind shared.engine.Engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from cuda_train import device, distributed
from cuda_train.compiling import compiled
from cuda_train.ops import make_ops
from shared.engine.microbatch import micro_batches
from shared.engine.protocol import StepResult, Weights
from shared.engine.ranks import OneRank, Ranks
from shared.engine.state import EngineState
from shared.model import Forward, forward, log_probs, symbol_nats, training_loss, training_parameters
from shared.model.stages import StepNumbers, final_numbers, training_stages, warm_up_numbers
from shared.optim import HYPERPARAMETERS, optimizer_step, orthogonalise, squared_norms
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
        self._set_products()
        self._loss = _Loss(self)
        self.params = self._loss.named
        self._ranked_loss = self._with_ranks(self._loss)
        self._losses = self._compile(self._ranked_loss, "the training loss")
        self._update = self._compile(self._update_in_place, "the optimizer step")
        self._score = self._compile(lambda params, x: symbol_nats(self.ops, spec, params, x, model), "the score")
        self._log_probs = self._compile(
            lambda params, x: log_probs(self.ops, spec, params, x, model), "the log-probabilities"
        )

    def warm_up(self, x: np.ndarray) -> None:
        # On the host: a second copy of the state on a GPU would be the most memory that the run ever needs.
        before = [value.detach().to("cpu", copy=True) for value in self._tensors()]
        for numbers in warm_up_numbers(self.spec, HYPERPARAMETERS):
            self.train_step(x, numbers)
        with torch.no_grad():
            for value, kept in zip(self._tensors(), before, strict=True):
                value.copy_(kept)

    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        with distributed.contact(self.ranks.rank):
            loss = self._backward(x, numbers)
            with torch.no_grad():
                scalars = self._on_device(numbers.optimizer)
                squares = self._update(self.params, self._gradients(), self.state, scalars)
                read = device.read_later(torch.cat([loss.reshape(1), squares]))
        return lambda: self._checked(read())

    def gradients(self, x: np.ndarray, numbers: StepNumbers | None = None) -> tuple[float, dict[str, np.ndarray]]:
        loss = self._backward(x, numbers or final_numbers(self.spec))
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
        self._set_products()
        return {name: value.detach() for name, value in self._weights(self.scoring_kind).items()}

    def _symbols(self, x: np.ndarray) -> torch.Tensor:
        """Symbols on the device, int32."""
        return device.to_device(np.ascontiguousarray(x, np.int32))

    def _on_device(self, numbers: Mapping[str, float]) -> Arrays:
        """Numbers as float32 scalars on the device, in one transfer."""
        return dict(zip(numbers, device.to_device(np.array(list(numbers.values()), np.float32)), strict=True))

    def _backward(self, x: np.ndarray, numbers: StepNumbers) -> torch.Tensor:
        """Mean nats of the batch; the gradient of its training loss is in `_gradients` afterwards.

        x is this rank's share of the batch. One micro-batch after the other; ranks exchange gradients in the backward
        pass of the last one.
        """
        self._set_products()
        for value in self.params.values():
            value.grad = None
        # The stage as a string, which torch.compile treats as a constant: it makes one graph for each.
        stage, run = str(numbers.stage), (self._on_device(numbers.run) if numbers.run else {}) | self.tables
        parts = list(micro_batches(self.spec, x))
        total = torch.zeros((), device=self._device)
        for index, (share, part) in enumerate(parts):
            with contextlib.ExitStack() as stack:
                if isinstance(self._ranked_loss, DistributedDataParallel) and index < len(parts) - 1:
                    stack.enter_context(self._ranked_loss.no_sync())
                loss, nats = self._losses(self._symbols(part), stage, run)
                (share * loss).backward()
            total = total + share * nats.detach()
        return distributed.mean_over_ranks(total, self.ranks)

    def _set_products(self) -> None:
        """Multiply as this spec says: torch has one setting for the process, and other engines may have changed it."""
        device.use_float32_products(self.spec.training.float32_products)

    def _gradients(self) -> Arrays:
        return {name: value.grad for name, value in self.params.items() if value.grad is not None}

    def _update_in_place(self, params: Arrays, grads: Arrays, state: Arrays, hyper: Arrays) -> torch.Tensor:
        """One optimizer step; returns the squared norm of each gradient."""
        shared_out = distributed.shared_orthogonalise if self.ranks.world_size > 1 else orthogonalise
        trained = {name: params[name] for name in self.trained}
        squares = squared_norms(self.ops, grads)
        norm = torch.sqrt(squares.sum())
        new_params, new_state = optimizer_step(self.ops, self.spec, trained, grads, state, norm, hyper, shared_out)
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

    def _compile(self, function: Callable, what: str) -> Callable:
        return compiled(function, what) if self.spec.training.compile else function


class _Loss(torch.nn.Module):
    """The training loss as a module that owns the float32 weights, as DistributedDataParallel requires."""

    def __init__(self, engine: TrainingEngine) -> None:
        super().__init__()
        self.ops, self.model = engine.ops, engine.model
        self.stages = {str(index): stage for index, stage in enumerate(training_stages(engine.spec))}
        manifest = training_parameters(engine.spec)
        self.names = [parameter.name for parameter in manifest]
        # Parameters that a stage does not read: skips and gates of loops that do not run yet.
        self.idle = {
            key: sorted(set(self.names) - {parameter.name for parameter in training_parameters(stage)})
            for key, stage in self.stages.items()
        }
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(
                torch.zeros(parameter.shape, device=device.default_device()), parameter.name in engine.trained
            )
            for parameter in manifest
        )

    @property
    def named(self) -> Arrays:
        """The weights by parameter name."""
        return dict(zip(self.names, self.weights, strict=True))

    def forward(self, x: torch.Tensor, stage: str, run: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
        """(training loss, mean nats) of x [B, T] in a stage, with the run's numbers (shared.model.stages)."""
        params = self.named
        loss, nats = training_loss(self.ops, self.stages[stage], {**params, **run}, x, self.model)
        for name in self.idle[stage]:
            # A gradient of zero: ranks wait for the gradient of every parameter, and so does the update.
            loss = loss + 0.0 * params[name].sum()
        return loss, nats.detach()
