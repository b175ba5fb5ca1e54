"""The MLX training engine: compiled functions, streams and state behind shared.engine.Engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_train import device, distributed
from mlx_train.ops import make_ops
from shared.engine.microbatch import micro_batches
from shared.engine.protocol import Stepper, StepResult
from shared.engine.ranks import OneRank, Ranks
from shared.engine.state import EngineState
from shared.engine.window_stepper import WindowStepper
from shared.model import Forward, ModelStepper, forward, log_probs, symbol_nats, training_loss
from shared.model.stages import StepNumbers, final_numbers, training_stages, warm_up_numbers
from shared.optim import HYPERPARAMETERS, optimizer_step, partition_parameters, squared_norms
from shared.spec import Spec

Arrays = dict[str, mx.array]


class TrainingEngine(EngineState):
    """One model with its optimizer state on the default MLX device. See shared.engine.Engine.

    Work is spread over the streams: micro-batches, rows to score, and the parameters of an update. Sums
    are taken in a fixed order, so a step is bit-for-bit repeatable.
    """

    name = "mlx"

    def __init__(self, spec: Spec, model: Forward = forward, ranks: Ranks | None = None) -> None:
        super().__init__(spec, model, make_ops(), ranks or OneRank())
        device.use_float32_products(spec.training.float32_products)
        self.streams = device.compute_streams()
        self._partition = partition_parameters(spec, len(self.streams))
        # One function for each stage of the run: (gradients of a first micro-batch, of a later one).
        self._gradients = [
            (
                self._on_streams(partial(self._weighted_gradients, stage)),
                self._on_streams(partial(self._accumulate, stage)),
            )
            for stage in training_stages(spec)
        ]
        self._update = self._on_streams(self._optimizer_step)
        self._score = self._on_streams(lambda params, x: symbol_nats(self.ops, spec, params, x, model))
        self._log_probs = self._on_streams(lambda params, x: log_probs(self.ops, spec, params, x, model))

    def warm_up(self, x: np.ndarray) -> None:
        for numbers in warm_up_numbers(self.spec, HYPERPARAMETERS):
            _, grads = self._batch_gradients(x, numbers)
            self._updated(grads, squared_norms(self.ops, grads), numbers.optimizer)

    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        loss, grads = self._batch_gradients(x, numbers)
        squares = squared_norms(self.ops, grads)
        self.params, self.state = self._updated(grads, squares, numbers.optimizer)
        read = self.ops.to_numpy(mx.concatenate([loss.reshape(1), squares]))
        return lambda: self._checked(read)

    def gradients(self, x: np.ndarray, numbers: StepNumbers | None = None) -> tuple[float, dict[str, np.ndarray]]:
        loss, grads = self._batch_gradients(x, numbers or final_numbers(self.spec))
        return float(self.ops.to_numpy(loss)), self._to_host(grads)

    def score(self, x: np.ndarray) -> np.ndarray:
        return self._spread(self._score, x)

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        return self._spread(self._log_probs, x)

    def stepper(self, rows: int) -> Stepper:
        if self.model is not forward:
            return WindowStepper(self, rows)
        return ModelStepper(self.ops, self.spec, self._weights(self.scoring_kind), rows)

    def peak_memory_bytes(self) -> int:
        return device.peak_memory_bytes()

    def synchronise(self) -> None:
        mx.synchronize()

    def device_name(self) -> str:
        return device.device_name()

    def _weighted_gradients(
        self, stage: Spec, params: Arrays, run: Arrays, x: mx.array, share: mx.array
    ) -> tuple[mx.array, Arrays]:
        """Mean nats of one micro-batch and gradients of its training loss, each times its share of the batch.

        `run`: shared.model.stages.
        """

        def losses(trained: Arrays) -> tuple[mx.array, mx.array]:
            return training_loss(self.ops, stage, {**params, **trained, **run}, x, self.model)

        (_, nats), grads = mx.value_and_grad(losses)({name: params[name] for name in self.trained})
        return share * nats, {name: share * grad for name, grad in grads.items()}

    def _accumulate(
        self, stage: Spec, params: Arrays, run: Arrays, x: mx.array, share: mx.array, loss: mx.array, grads: Arrays
    ) -> tuple[mx.array, Arrays]:
        more_loss, more = self._weighted_gradients(stage, params, run, x, share)
        return loss + more_loss, {name: grads[name] + more[name] for name in grads}

    def _optimizer_step(self, params: Arrays, grads: Arrays, state: Arrays, norm: mx.array, hyper: Arrays) -> Any:
        return optimizer_step(self.ops, self.spec, params, grads, state, norm, hyper)

    def _updated(self, grads: Arrays, squares: mx.array, hyper: Mapping[str, float]) -> tuple[Arrays, Arrays]:
        """(params, state) after one optimizer step, each stream with its part of the parameters."""
        norm = mx.sqrt(mx.sum(squares))
        scalars = {name: mx.array(value, mx.float32) for name, value in hyper.items()}
        updated = [
            update(*self._part(names, grads), norm, scalars)
            for update, names in zip(self._update, self._partition, strict=True)
        ]
        mx.eval(updated)
        params, state = dict(self.params), {}
        for some_params, some_state in updated:
            params.update(some_params)
            state.update(some_state)
        return params, {key: state[key] for key in self.state}

    def _batch_gradients(self, x: np.ndarray, numbers: StepNumbers) -> tuple[mx.array, Arrays]:
        """Loss and gradients of the mean over the whole batch, x being this rank's share of it.

        Micro-batch i belongs to stream i mod their number. Each round of one micro-batch a stream is
        evaluated before the next graph is built.
        """
        count = len(self.streams)
        first_gradients, more_gradients = self._gradients[numbers.stage]
        run = {name: mx.array(value, mx.float32) for name, value in numbers.run.items()} | self.tables
        parts = list(micro_batches(self.spec, x, count))
        sums: list[tuple[mx.array, Arrays]] = []
        for first in range(0, len(parts), count):
            for index, (share, part) in enumerate(parts[first : first + count]):
                arguments = (self.params, run, self.ops.asarray(part), mx.array(share, mx.float32))
                if first == 0:
                    sums.append(first_gradients[index](*arguments))
                else:
                    sums[index] = more_gradients[index](*arguments, *sums[index])
            mx.eval(sums)
        loss, grads = sums[0]
        for more_loss, more in sums[1:]:
            loss, grads = loss + more_loss, {name: grads[name] + more[name] for name in grads}
        mx.eval(loss, grads)
        return distributed.average(self.ranks, loss, grads)

    def _part(self, names: list[str], grads: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        """(params, gradients, state) of some parameters."""
        wanted = set(names)
        params = {name: self.params[name] for name in names}
        state = {key: value for key, value in self.state.items() if key.split("/", 1)[1] in wanted}
        return params, {name: grads[name] for name in names}, state

    def _on_streams(self, function: Callable) -> list[Callable]:
        """The function once for each stream, compiled if the spec says so."""

        def on(stream: mx.Stream) -> Callable:
            def run(*arguments: Any) -> Any:
                with mx.stream(stream):
                    return function(*arguments)

            return mx.compile(run) if self.spec.training.compile else run

        return [on(stream) for stream in self.streams]

    def _spread(self, functions: list[Callable], x: np.ndarray) -> np.ndarray:
        """A scoring function of x [B, T], its rows divided among the streams."""
        weights = self._weights(self.scoring_kind)
        parts = [part for part in np.array_split(x, len(self.streams)) if len(part)]
        results = [function(weights, self.ops.asarray(part)) for function, part in zip(functions, parts, strict=False)]
        mx.eval(results)
        return np.concatenate([self.ops.to_numpy(result) for result in results])
