"""Profiles a training step of the MLX engine.

MLX has no profiler of operations. Everywhere, the phases of a step are timed, each from when the device is idle
to when it is idle again. On a Mac with Metal, and MTL_CAPTURE_ENABLED=1 in the environment, a GPU trace for
Xcode is written as well, next to the other, as trace.gputrace.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_train import device
from shared.engine.protocol import Engine
from shared.engine.step_profiler import Cost, costs_by_name, write_trace

# Methods of mlx_train.engine.TrainingEngine that are phases of `train_step`, and what they do. What a step does
# outside them is "checks".
PHASES = {"_batch_gradients": "forward and backward", "_updated": "gradient norms and optimizer update"}
REST = "checks"
STEP = "train_step"


class MLXProfiler:
    """Times one engine's phases between start and stop. See shared.engine.step_profiler.StepProfiler."""

    measured = "time of the phases of a step; MLX does not time operations"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._events: list[tuple[str, float, float]] = []
        self._trace_path = Path()
        self._capturing = False

    def start(self, trace_path: Path) -> None:
        self._events, self._trace_path = [], trace_path
        self._capturing = device.on_gpu() and os.environ.get("MTL_CAPTURE_ENABLED") == "1"
        if self._capturing:
            capture_path = trace_path.with_suffix(".gputrace")
            shutil.rmtree(capture_path, ignore_errors=True)  # Metal does not replace one
            mx.metal.start_capture(str(capture_path))
        for method, label in {**PHASES, STEP: STEP}.items():
            setattr(self._engine, method, self._timed(label, getattr(self._engine, method)))

    def stop(self) -> list[Cost]:
        for method in (*PHASES, STEP):
            delattr(self._engine, method)  # the instance's; the class's shows again
        if self._capturing:
            mx.metal.stop_capture()
        write_trace(self._trace_path, self._events)
        return costs_by_name(self._spent())

    def _timed(self, label: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._engine.synchronise()
            begin = time.perf_counter()
            result = method(*arguments, **keywords)
            self._engine.synchronise()
            self._events.append((label, begin, time.perf_counter() - begin))
            return result

        return timed

    def _spent(self) -> dict[str, tuple[int, float]]:
        """(calls, seconds) of each phase, and of the rest of the steps."""
        calls: defaultdict[str, int] = defaultdict(int)
        seconds: defaultdict[str, float] = defaultdict(float)
        for label, _, duration in self._events:
            calls[label] += 1
            seconds[label] += duration
        whole = seconds.pop(STEP, 0.0)
        spent = {label: (calls[label], seconds[label]) for label in seconds}
        spent[REST] = calls[STEP], max(0.0, whole - sum(seconds.values()))
        return spent


def make_profiler(engine: Engine) -> MLXProfiler:
    """The profiler for one MLX engine."""
    return MLXProfiler(engine)
