"""A training step as one CUDA graph: recorded once, then replayed by a single launch.

A step is hundreds to thousands of kernels. Launched one by one from Python they leave the GPU waiting between them, the
longer the smaller the model and its batch are (docs/techniques.md 9.11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from cuda_train import device
from shared.model.stages import StepNumbers

Arrays = dict[str, torch.Tensor]
# (symbols of the batch, numbers of the run, numbers of the optimizer) -> what the host reads of a step.
Step = Callable[[torch.Tensor, Arrays, Arrays], torch.Tensor]

# Those that exist.
_recorded: WeakSet[StepGraph] = WeakSet()


def forget_all() -> None:
    """Free every recorded step; none can be replayed afterwards."""
    for graph in _recorded:
        graph.forget()


class StepGraph:
    """The recorded step of one stage and shape of batch. Everything it reads and writes stays where it is in memory."""

    def __init__(self, step: Step, x: np.ndarray, numbers: StepNumbers, pool: Any) -> None:
        """Record `step`, which has run before, so that everything in it is compiled. Nothing is computed.

        `pool` is the memory that the graphs of one engine share: only one of them runs at a time.
        """
        self._run, self._optimizer = list(numbers.run), list(numbers.optimizer)
        self._x, self._numbers = device.to_device(x), device.to_device(self._in_one(numbers))
        scalars = list(self._numbers)
        run = dict(zip(self._run, scalars, strict=False))
        optimizer = dict(zip(self._optimizer, scalars[len(run) :], strict=True))
        self._graph = torch.cuda.CUDAGraph()
        # thread_local, because another thread may write a checkpoint meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._result = step(self._x, run, optimizer)
        _recorded.add(self)

    def replay(self, x: np.ndarray, numbers: StepNumbers) -> torch.Tensor:
        """Queue the step on a batch; returns what the host reads of it, valid until the next replay."""
        for there, values in ((self._x, x), (self._numbers, self._in_one(numbers))):
            there.copy_(torch.from_numpy(values).pin_memory(), non_blocking=True)
        self._graph.replay()
        return self._result

    def forget(self) -> None:
        """Free what CUDA and NCCL hold of it."""
        self._graph.reset()

    def _in_one(self, numbers: StepNumbers) -> np.ndarray:
        """The numbers of the run, then those of the optimizer, in the order in which they were recorded."""
        return np.array(
            [*_in_order(numbers.run, self._run), *_in_order(numbers.optimizer, self._optimizer)], np.float32
        )


def _in_order(values: Mapping[str, float], names: Iterable[str]) -> list[float]:
    assert values.keys() == set(names), sorted(values)
    return [values[name] for name in names]
