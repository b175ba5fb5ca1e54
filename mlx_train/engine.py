"""The MLX training engine: compiled functions, streams and state behind shared.engine.Engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_train import device, distributed
from mlx_train.failures import told
from mlx_train.joints import Joints
from mlx_train.ops import make_ops
from shared.engine.microbatch import micro_batches
from shared.engine.protocol import Stepper, StepResult, Weights, WeightsKind
from shared.engine.ranks import OneRank, Ranks
from shared.engine.state import EngineState
from shared.engine.window_stepper import WindowStepper
from shared.model import (
    Forward,
    ModelStepper,
    forward,
    log_probs,
    symbol_nats,
    training_loss,
    training_parameters,
)
from shared.model.stages import StepNumbers, final_numbers, training_stages, warm_up_numbers
from shared.optim import HYPERPARAMETERS, optimizer_step
from shared.spec import Spec

Arrays = dict[str, mx.array]


class TrainingEngine(EngineState):
    """One model with its optimizer state on the default MLX device. See shared.engine.Engine.

    Work is spread over the streams: micro-batches, rows to score, and the parameters of an update. Sums
    are taken in a fixed order, so a step is bit-for-bit repeatable.
    """

    name = "mlx"

    def __init__(self, spec: Spec, model: Forward = forward, ranks: Ranks | None = None) -> None:
        self.streams = device.compute_streams()
        self.joints = Joints(spec, len(self.streams))
        # What is trained, with its optimizer state, by joint; and the parameters that are frozen, by name.
        self._trained: Arrays = {}
        self._state: Arrays = {}
        self._frozen: Arrays = {}
        super().__init__(spec, model, make_ops(), ranks or OneRank())
        self.compiles = self.compiles and device.compiles()
        device.use_float32_products(spec.training.float32_products)
        # One function for each stage of the run: (gradients of a first micro-batch, of a later one).
        self._gradients = [
            (
                self._on_streams(partial(self._weighted_gradients, stage)),
                self._on_streams(partial(self._accumulate, stage)),
            )
            for stage in training_stages(spec)
        ]
        parts = enumerate(self.streams)
        self._update = [self._on_stream(stream, partial(self._optimizer_step, part)) for part, stream in parts]
        self._score = self._on_streams(lambda params, x: symbol_nats(self.ops, spec, params, x, model))
        self._log_probs = self._on_streams(lambda params, x: log_probs(self.ops, spec, params, x, model))

    @property
    def params(self) -> Arrays:
        """The weights by parameter name, what is trained as views of the joints."""
        named = self._frozen | self.joints.split(self._trained)
        return {parameter.name: named[parameter.name] for parameter in training_parameters(self.spec)}

    @params.setter
    def params(self, values: Arrays) -> None:
        self._trained = self.joints.join(values)
        self._frozen = {name: value for name, value in values.items() if name not in self.joints.names}
        mx.eval(self._trained)

    @property
    def state(self) -> Arrays:
        """The optimizer state by `KIND/parameter name`, as views of the joints."""
        return self.joints.split_state(self._state)

    @state.setter
    def state(self, values: Arrays) -> None:
        self._state = self.joints.join_state(values)
        mx.eval(self._state)

    @told
    def warm_up(self, x: np.ndarray, earlier: Mapping[str, str] | None = None) -> dict[str, Any] | None:
        for numbers in warm_up_numbers(self.spec, HYPERPARAMETERS):
            mx.eval(self._updated(*self._batch_gradients(x, numbers), numbers))
        return None

    @told
    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        loss, grads = self._batch_gradients(x, numbers)
        self._trained, self._state, read = self._updated(loss, grads, numbers)
        return lambda: self._checked(self.ops.to_numpy(read))

    @told
    def gradients(self, x: np.ndarray, numbers: StepNumbers | None = None) -> tuple[float, dict[str, np.ndarray]]:
        loss, grads = self._batch_gradients(x, numbers or final_numbers(self.spec))
        return float(self.ops.to_numpy(loss)), self._to_host(self.joints.split(grads))

    @told
    def score(self, x: np.ndarray) -> np.ndarray:
        return self._spread(self._score, x)

    @told
    def log_probs(self, x: np.ndarray) -> np.ndarray:
        return self._spread(self._log_probs, x)

    def stepper(self, rows: int) -> Stepper:
        if self.model is not forward:
            return WindowStepper(self, rows)
        return ModelStepper(self.ops, self.spec, self._weights(self.scoring_kind), rows)

    def use_weights(self, kind: WeightsKind) -> None:
        super().use_weights(kind)
        # Scoring begins or ends: a buffer of the one kind of pass fits none of the other.
        mx.clear_cache()

    def peak_memory_bytes(self) -> int:
        return device.peak_memory_bytes()

    @told
    def synchronise(self) -> None:
        mx.synchronize()

    def device_name(self) -> str:
        return device.device_name()

    @told
    def _adopt(self, weights: Weights, state: Weights) -> None:
        super()._adopt(weights, state)

    def _weighted_gradients(
        self, stage: Spec, trained: Arrays, frozen: Arrays, run: Arrays, x: mx.array, share: mx.array
    ) -> tuple[mx.array, Arrays]:
        """Mean nats of one micro-batch and gradients of its training loss by joint, each times its share of the batch.

        `run`: shared.model.stages.
        """

        def losses(trained: Arrays) -> tuple[mx.array, mx.array]:
            params = {**frozen, **self.joints.split(trained), **run}
            loss, nats = training_loss(self.ops, stage, params, x, self.model)
            return share * loss, share * nats

        (_, nats), grads = mx.value_and_grad(losses)(trained)
        return nats, grads

    def _accumulate(
        self,
        stage: Spec,
        trained: Arrays,
        frozen: Arrays,
        run: Arrays,
        x: mx.array,
        share: mx.array,
        loss: mx.array,
        grads: Arrays,
    ) -> tuple[mx.array, Arrays]:
        more_loss, more = self._weighted_gradients(stage, trained, frozen, run, x, share)
        return loss + more_loss, {joint: grads[joint] + more[joint] for joint in grads}

    def _optimizer_step(
        self, part: int, trained: Arrays, state: Arrays, loss: mx.array, grads: Arrays, hyper: Arrays
    ) -> tuple[Arrays, Arrays, mx.array]:
        """(new weights, new state) of one part, and what the host reads: [loss, squared norm of each gradient].

        Every part computes the norm of all gradients for itself: that is cheaper than to wait for each other.
        """
        squares = self.joints.squared_norms(self.ops, grads)
        norm = mx.sqrt(mx.sum(squares))
        own, groups = self.joints.part(part, grads), self.joints.groups
        new = optimizer_step(self.ops, self.spec, trained, own, state, norm, hyper, groups=groups)
        return *new, mx.concatenate([loss.reshape(1), squares])

    def _updated(self, loss: mx.array, grads: Arrays, numbers: StepNumbers) -> tuple[Arrays, Arrays, mx.array]:
        """(weights, state) by joint after one optimizer step, each stream with its part of them, and what the host
        reads. The device is not waited for."""
        hyper = {name: mx.array(value, mx.float32) for name, value in numbers.optimizer.items()}
        updated = [
            update(self.joints.part(index, self._trained), self.joints.part(index, self._state), loss, grads, hyper)
            for index, update in enumerate(self._update)
        ]
        mx.async_eval(updated)
        trained: Arrays = {}
        state: Arrays = {}
        for some_weights, some_state, _ in updated:
            trained |= some_weights
            state |= some_state
        # In the order they had: another one is another structure to mx.compile, which would trace every function again.
        in_order = {name: trained[name] for name in self._trained}, {name: state[name] for name in self._state}
        return *in_order, updated[0][2]

    def _batch_gradients(self, x: np.ndarray, numbers: StepNumbers) -> tuple[mx.array, Arrays]:
        """Loss and gradients by joint of the mean over the whole batch, x being this rank's share of it.

        Micro-batch i belongs to stream i mod their number. Each round of one micro-batch a stream is queued before the
        next graph is built; MLX bounds what is in flight.
        """
        count = len(self.streams)
        first_gradients, more_gradients = self._gradients[numbers.stage]
        run = {name: mx.array(value, mx.float32) for name, value in numbers.run.items()} | self.tables | self.logits
        parts = list(micro_batches(self.spec, x, count))
        sums: list[tuple[mx.array, Arrays]] = []
        for first in range(0, len(parts), count):
            for index, (share, part) in enumerate(parts[first : first + count]):
                given = (self._trained, self._frozen, run, self.ops.asarray(part), mx.array(share, mx.float32))
                if first == 0:
                    sums.append(first_gradients[index](*given))
                else:
                    sums[index] = more_gradients[index](*given, *sums[index])
            mx.async_eval(sums)
        loss, grads = sums[0]
        for more_loss, more in sums[1:]:
            loss, grads = loss + more_loss, {joint: grads[joint] + more[joint] for joint in grads}
        return distributed.average(self.ranks, loss, grads)

    def _on_streams(self, function: Callable) -> list[Callable]:
        """The function once for each stream."""
        return [self._on_stream(stream, function) for stream in self.streams]

    def _on_stream(self, stream: mx.Stream, function: Callable) -> Callable:
        """The function on a stream, compiled if this engine compiles."""

        def run(*arguments: Any) -> Any:
            with mx.stream(stream):
                return function(*arguments)

        return mx.compile(run) if self.compiles else run

    def _spread(self, functions: list[Callable], x: np.ndarray) -> np.ndarray:
        """A scoring function of x [B, T], its rows divided among the streams."""
        weights = self._weights(self.scoring_kind)
        parts = [part for part in np.array_split(x, len(self.streams)) if len(part)]
        results = [function(weights, self.ops.asarray(part)) for function, part in zip(functions, parts, strict=False)]
        mx.eval(results)
        return np.concatenate([self.ops.to_numpy(result) for result in results])
