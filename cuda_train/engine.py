"""The torch training engine: compiled functions, devices and state behind shared.engine.Engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from cuda_train import device, distributed
from cuda_train.attention_forms import activate, attention_forms, chosen_attention
from cuda_train.choosing import Choice
from cuda_train.compiling import compiled
from cuda_train.failures import told
from cuda_train.joined import Joined
from cuda_train.ops import make_ops
from cuda_train.plain_ops import TorchOps
from cuda_train.step_graph import StepGraph
from shared.engine.microbatch import micro_batches
from shared.engine.protocol import Stepper, StepResult, Weights
from shared.engine.ranks import OneRank, Ranks
from shared.engine.state import EngineState
from shared.engine.window_stepper import WindowStepper
from shared.errors import one_line
from shared.model import Forward, ModelStepper, forward, log_probs, symbol_nats, training_loss, training_parameters
from shared.model.stages import StepNumbers, final_numbers, training_stages, warm_up_numbers
from shared.optim import HYPERPARAMETERS, optimizer_step, orthogonalise
from shared.spec import Spec

Arrays = dict[str, torch.Tensor]

# 0: launch the kernels of a step one by one, to debug or to compare.
GRAPHS_VARIABLE = "BYTETWIN_CUDA_GRAPHS"
# How many symbols a pass of training and one of scoring have.
TRAINS, SCORES = "training.micro_batch_symbols", "evaluation.batch_symbols"


class TrainingEngine(EngineState):
    """One model with its optimizer state on one device, alone or as one of several ranks. See shared.engine.Engine.

    Weights and state stay where they are in memory: a step changes them in place.
    """

    name = "torch"
    ops: TorchOps

    def __init__(self, spec: Spec, model: Forward = forward, ranks: Ranks | None = None) -> None:
        super().__init__(spec, model, make_ops(), ranks or OneRank())
        self._device = device.default_device()
        self._set_products()
        self._joined = Joined(spec)
        # Recorded steps by stage and shape of the batch.
        self._graphs: dict[tuple[int, tuple[int, ...]], StepGraph] = {}
        self._graph_pool: Any = None
        # What was found when implementations were chosen; None before that.
        self._chosen: dict[str, Any] | None = None
        self._alone = isinstance(self.ranks, OneRank)
        self._records = device.on_gpu() and spec.training.compile and os.environ.get(GRAPHS_VARIABLE, "1") != "0"
        self._loss = _Loss(self)
        self.params, self.state = self._loss.named, {}
        self._losses = self._compile(self._loss, "the training loss")
        # Ranks average their gradients, so all that they compute on their own of these is to be the same to the bit.
        together = not self._alone
        self._update = self._compile(self._updated_joints, "the optimizer step", together)
        self._score = self._compile(
            lambda params, x: symbol_nats(self.ops, spec, params, x, model), "the score", together
        )
        self._log_probs = self._compile(
            lambda params, x: log_probs(self.ops, spec, params, x, model), "the log-probabilities", together
        )

    @told(TRAINS)
    def warm_up(self, x: np.ndarray, earlier: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        # Once: another choice would compile everything again.
        self._chosen = self._choose(x, earlier or {}) if self._chosen is None else self._chosen
        # On the host: a second copy of the state on a GPU would be the most memory that the run ever needs.
        before = [value.detach().to("cpu", copy=True) for value in self._tensors()]
        every = warm_up_numbers(self.spec, HYPERPARAMETERS)
        for numbers in every:
            self.train_step(x, numbers)
        with torch.no_grad():
            for value, kept in zip(self._tensors(), before, strict=True):
                value.copy_(kept)
        if self._records:
            self._record_stages(device.host_symbols(x), every)
        return self._chosen or None

    @told(TRAINS)
    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        x = device.host_symbols(x)
        with distributed.contact(self.ranks.rank):
            graph = self._graphs.get((numbers.stage, x.shape))
            if graph is not None:
                self._set_products()
                result = graph.replay(x, numbers)
            else:
                result = self._updated(self._backward(x, numbers), self._on_device(numbers.optimizer))
            read = device.read_later(result, None if self._alone else distributed.STEP_TIMEOUT.total_seconds())
        return lambda: self._checked(read())

    @told(TRAINS)
    def gradients(self, x: np.ndarray, numbers: StepNumbers | None = None) -> tuple[float, dict[str, np.ndarray]]:
        loss = self._backward(x, numbers or final_numbers(self.spec))
        return float(loss.item()), self._to_host(self._gradients())

    @told(SCORES)
    def score(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.ops.to_numpy(self._score(self._scored(), self._symbols(x)))

    @told(SCORES)
    def log_probs(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.ops.to_numpy(self._log_probs(self._scored(), self._symbols(x)))

    def stepper(self, rows: int) -> Stepper:
        if self.model is not forward:
            return WindowStepper(self, rows)
        return ModelStepper(self.ops, self.spec, self._scored(), rows)

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
        self._graphs.clear()  # They change the state that was there before.

    def use_symbol_weights(self, weights: np.ndarray) -> None:
        super().use_symbol_weights(weights)
        self._graphs.clear()

    def _choose(self, x: np.ndarray, earlier: Mapping[str, str]) -> dict[str, Any]:
        """Choose implementations for micro-batches of x before anything is compiled with them; returns what was found.
        All ranks take the attention of rank 0."""
        chosen = {}
        rows = len(next(micro_batches(self.spec, x))[1])
        if found := chosen_attention(self.spec, rows, self._device, earlier.get("attention")):
            choice, self.ops.attend = found
            if not self._alone:
                choice.name = self.ranks.broadcast(choice.name.encode()).decode()
                self.ops.attend = attention_forms(self._device)[choice.name]
                activate(choice.name)
            chosen["attention"] = asdict(choice)
        if set(self.spec.model.mixers) - {"attention"}:
            # Importing it imports nothing of fla-core.
            from cuda_train.fla_scans import chosen_scans

            for name, (choice, scan) in chosen_scans(self.spec, self.ops, self._device).items():
                self.ops.scans[name] = scan
                chosen[name] = asdict(choice)
        return chosen

    def _record_stages(self, x: np.ndarray, every: Sequence[StepNumbers]) -> None:
        """Record the step of every stage on batches of x's shape.

        With several ranks it holds collectives, which a driver or NCCL may refuse to record. Then no rank records, and
        what is chosen says why.
        """
        problem = ""
        try:
            for numbers in every:
                self._record(x, numbers)
        except RuntimeError as error:
            if self._alone:
                raise
            problem = one_line(str(error))
        if not self._alone and any(map(np.any, self.ranks.gather(np.array([bool(problem)])))):
            self._graphs.clear()
            self._records = False
            refused = {"one graph": problem or "another rank could not record it"}
            self._chosen = {**(self._chosen or {}), "step": asdict(Choice("kernel by kernel", refused=refused))}

    def _record(self, x: np.ndarray, numbers: StepNumbers) -> None:
        """Record the step of a stage on batches of x's shape, unless that is done."""
        key = (numbers.stage, x.shape)
        if key in self._graphs:
            return
        shares = [(share, len(part)) for share, part in micro_batches(self.spec, x)]

        def step(symbols: torch.Tensor, run: Arrays, optimizer: Arrays) -> torch.Tensor:
            parts = symbols.split([rows for _, rows in shares])
            shared_out = [(share, part) for (share, _), part in zip(shares, parts, strict=True)]
            return self._updated(self._backward_of(shared_out, str(numbers.stage), run), optimizer)

        if not self._graphs:  # A pool goes with the last graph in it: torch asserts that one is left.
            self._graph_pool = torch.cuda.graph_pool_handle()
        # What the steps so far have used is free, but in another pool: both together may not fit.
        self._forget_gradients()
        torch.cuda.empty_cache()
        self._graphs[key] = StepGraph(step, x, numbers, self._graph_pool)

    def _tensors(self) -> list[torch.Tensor]:
        """Everything a step changes."""
        return [*self.params.values(), *self.state.values()]

    def _scored(self) -> Arrays:
        """The weights to score with, all as plain tensors, for which one compiled graph serves."""
        self._set_products()
        return {name: value.detach() for name, value in self._weights(self.scoring_kind).items()}

    def _symbols(self, x: np.ndarray) -> torch.Tensor:
        """Symbols on the device, int32."""
        return device.to_device(device.host_symbols(x))

    def _on_device(self, numbers: Mapping[str, float]) -> Arrays:
        """Numbers as float32 scalars on the device, in one transfer."""
        if not numbers:
            return {}
        return dict(zip(numbers, device.to_device(np.array(list(numbers.values()), np.float32)), strict=True))

    def _updated(self, loss: torch.Tensor, optimizer: Arrays) -> torch.Tensor:
        """[loss, squared norm of each gradient], after the update in place by the gradients."""
        with torch.no_grad():
            grads, joined = self._gradients(), self._joined
            norms = torch.stack(torch._foreach_norm(list(grads.values())))
            squares = norms * norms
            state = joined.join_state(self.state)
            new = self._update(joined.join(self.params), joined.join(grads), state, squares.sum().sqrt(), optimizer)
            joined.write(new[0], self.params)
            joined.write(new[1], self.state)
            return torch.cat([loss.reshape(1), squares])

    def _updated_joints(
        self, params: Arrays, grads: Arrays, state: Arrays, norm: torch.Tensor, hyper: Arrays
    ) -> tuple[Arrays, Arrays]:
        """New (parameters, state), joined."""
        shared_out = orthogonalise if self._alone else distributed.shared_orthogonalise
        groups = self._joined.groups
        return optimizer_step(self.ops, self.spec, params, grads, state, norm, hyper, shared_out, groups)

    def _backward(self, x: np.ndarray, numbers: StepNumbers) -> torch.Tensor:
        """Mean nats of this rank's share of the batch; the gradient of its training loss is in `_gradients` then."""
        parts = [(share, self._symbols(part)) for share, part in micro_batches(self.spec, x)]
        return self._backward_of(parts, str(numbers.stage), self._on_device(numbers.run))

    def _backward_of(self, parts: Sequence[tuple[float, torch.Tensor]], stage: str, run: Arrays) -> torch.Tensor:
        """`_backward` of micro-batches, one after the other, each with its share.

        `stage` is a string, which torch.compile treats as a constant: it makes one graph for each.
        """
        self._set_products()
        self._forget_gradients()
        total = torch.zeros((), device=self._device)
        for share, part in parts:
            loss, nats = self._losses(part, stage, run | self.tables | self.logits)
            (share * loss).backward()
            total = total + share * nats.detach()
        if self._alone:
            return total
        grads = self._gradients()
        total, *means = distributed.means_over_ranks([total, *grads.values()])
        for name, mean in zip(grads, means, strict=True):
            self.params[name].grad = mean
        return total

    def _forget_gradients(self) -> None:
        for value in self.params.values():
            value.grad = None

    def _set_products(self) -> None:
        """Multiply as this spec says: torch has one setting for the process, and other engines may have changed it."""
        device.use_float32_products(self.spec.training.float32_products)

    def _gradients(self) -> Arrays:
        return {name: value.grad for name, value in self.params.items() if value.grad is not None}

    def _compile(self, function: Callable, what: str, alike: bool = False) -> Callable:
        return compiled(function, what, alike=alike) if self.spec.training.compile else function


class _Loss(torch.nn.Module):
    """The training loss as a module that owns the float32 weights."""

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
            # A gradient of zero: the update waits for the gradient of every parameter.
            loss = loss + 0.0 * params[name].sum()
        return loss, nats.detach()
