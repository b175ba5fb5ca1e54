"""Steps that an engine was given but whose results were not read yet, and the time they take.

The result of a step is read after the next step is queued, so that a device never waits for the host. Training time
runs from the moment the first step is prepared to the moment nothing is in flight: it is the time of the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shared.engine.protocol import Engine, StepResult
from shared.model.stages import StepNumbers

Clock = Callable[[], float]


@dataclass(frozen=True)
class DoneStep:
    """A step whose result was read: mean nats per symbol, gradient norm, the factor on its learning rates, its own
    duration, and the training time of the whole run at its end."""

    nats: float
    grad_norm: float
    lr_factor: float
    step_s: float
    elapsed_s: float


@dataclass(frozen=True)
class _Queued:
    result: StepResult
    lr_factor: float
    queueing_s: float
    queued_at: float


class StepQueue:
    """First in, first out. `clock` gives seconds; `elapsed_s` is the training time of earlier starts."""

    def __init__(self, engine: Engine, clock: Clock, elapsed_s: float) -> None:
        self._engine, self._clock = engine, clock
        self._steps: deque[_Queued] = deque()
        # Training time up to the last stop, the clock at the start after it, and at the end of the last step.
        self._stopped_s = elapsed_s
        self._started_at: float | None = None
        self._last_end = 0.0
        # Duration of the last step, and what one in flight will take: 0 where steps are done when they are queued.
        self._last_s = self._coming_s = 0.0

    def __len__(self) -> int:
        """Steps in flight."""
        return len(self._steps)

    @property
    def elapsed_s(self) -> float:
        """Training time up to now."""
        return self._until(self._clock()) if self._started_at is not None else self._stopped_s

    @property
    def expected_s(self) -> float:
        """Training time at the end of what is in flight, as far as can be told: exact where nothing is."""
        return self.elapsed_s + len(self._steps) * self._coming_s

    def start(self) -> None:
        """Training time runs from here on, if it does not already."""
        if self._started_at is None:
            self._started_at = self._last_end = self._clock()

    def push(self, x: np.ndarray, numbers: StepNumbers, lr_factor: float) -> None:
        """Queue a step on the batch x [B, T]. Raises what the engine raises; the queue is then as it was."""
        begin = self._clock()
        result = self._engine.train_step(x, numbers)
        end = self._clock()
        self._steps.append(_Queued(result, lr_factor, end - begin, end))

    def read(self) -> DoneStep:
        """Wait for the oldest step. Raises NonFiniteError, or what else the engine raises; then nothing is in flight
        any more that could be relied on, and the queue is empty."""
        step = self._steps.popleft()
        begin = self._clock()
        try:
            nats, grad_norm = step.result()
        except Exception:
            self._steps.clear()
            raise
        end = self._clock()
        # A device works while we wait for it; an engine on the CPU has done its work when the step is queued.
        waited = end - begin >= step.queueing_s
        end = max(end if waited else step.queued_at, self._last_end)
        seconds, self._last_end = end - self._last_end, end
        # The first step may be slow for reasons that do not come again, so the shorter of two counts.
        self._coming_s, self._last_s = min(seconds, self._last_s) if waited else 0.0, seconds
        return DoneStep(nats, grad_norm, step.lr_factor, seconds, self._until(end))

    def stop(self) -> None:
        """Wait for the device; training time stands still until the next `start`. All results have been read."""
        assert not self._steps, "results are outstanding"
        if self._started_at is not None:
            self._engine.synchronise()
            self._stopped_s = self._until(self._clock())
            self._started_at = None

    def _until(self, moment: float) -> float:
        assert self._started_at is not None
        return self._stopped_s + (moment - self._started_at)
