"""Memory of a training step as frameworks count it on a CPU: what autograd saves, and the peak of a pass."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

import cuda_train.engine
import mlx_train.engine
from mlx_train.device import compute_streams
from mlx_train.ops import PLAIN_VARIABLE
from shared.engine.activations import activation_bytes
from shared.engine.protocol import Engine
from shared.engine.synthetic import synthetic_engine
from shared.model import random_weights
from shared.model.stages import StepNumbers, training_stages
from shared.preflight.measure import largest_step
from shared.preflight.memory import gradient_bytes
from shared.preflight.workload import changed
from shared.spec import Spec
from shared.tolerances import MLX_AHEAD


class Saved:
    """A tensor that a node of the graph saved; it is gone when the node is."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def saved_storages(function: Callable[[], Any]) -> tuple[Any, dict[int, int]]:
    """(result of the function, bytes of each storage that its graph saved, by address)."""
    saved: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: torch.Tensor) -> Saved:
        saved.add(kept := Saved(tensor))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = function()
    storages = [kept.tensor.untyped_storage() for kept in saved]
    return result, {storage.data_ptr(): storage.nbytes() for storage in storages}


def torch_saved_bytes(spec: Spec, rows: int) -> int:
    """Bytes that torch saves for the backward pass of `rows` windows beside what is there anyway."""
    engine = synthetic_engine("torch", spec)
    assert isinstance(engine, cuda_train.engine.TrainingEngine)
    engine.initialise(random_weights(spec, 0))
    x = engine._symbols(np.zeros((rows, spec.model.seq_len), np.int32))
    last = str(len(training_stages(spec)) - 1)
    passes = [saved_storages(lambda: engine._losses(x, last, engine.tables)) for _ in range(2)]
    (_, first), (_, second) = passes
    # Weights, symbols and tables that stay are in both passes, at the same addresses.
    return sum(size for address, size in second.items() if address not in first)


def for_passes(spec: Spec, rows: int, workers: int, compiled: bool) -> Spec:
    """The spec in float32 with two micro-batches of `rows` windows for each worker: the second finds gradients."""
    symbols = rows * spec.model.seq_len
    sizes = {"training.micro_batch_symbols": symbols, "training.batch_symbols": 2 * workers * symbols}
    types = {"training.dtype": "float32", "optimizer.ns_dtype": "float32", "training.compile": compiled}
    clock = {"schedule.driver": "steps", "training.time_limit_s": 0.0, "training.reserve_s": 0.0}
    return changed(spec, {**sizes, **types, **clock})


def torch_peak_bytes(spec: Spec) -> int:
    """Most bytes that two micro-batches of the spec need at the same time beside weights and gradients."""
    engine, x, numbers = _ready("torch", spec)
    assert isinstance(engine, cuda_train.engine.TrainingEngine)
    engine._backward(x, numbers)
    for value in engine.params.values():
        value.grad = None
    # What earlier passes left is freed before, so that the profile holds this pass alone.
    gc.collect()
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            engine._backward(x, numbers)
    finally:
        gc.enable()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    in_use = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(in_use.max()) - gradient_bytes(spec)


def mlx_peak_bytes(spec: Spec, ahead: bool = True) -> int:
    """The same of one of MLX's workers. `ahead`: as it runs, the results of some operations are allocated before those
    before them are done and give back what they read; of how many is a matter of time and of what else runs. Otherwise
    each is waited for, so that the peak is that of the pass alone."""
    engine, x, numbers = _ready("mlx", spec)
    assert isinstance(engine, mlx_train.engine.TrainingEngine)
    import mlx.core as mx  # after mlx_train, which loads the BLAS

    engine.gradients(x, numbers)
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    # Above its limit MLX waits for what is in flight before it allocates more.
    limit = None if ahead else mx.set_memory_limit(1)
    try:
        # One round after the other: how many are in flight is a matter of time, for which plans leave room.
        with patch.object(mx, "async_eval", mx.eval):
            engine.gradients(x, numbers)
    finally:
        if limit is not None:
            mx.set_memory_limit(limit)
    return (mx.get_peak_memory() - before) // len(engine.streams) - gradient_bytes(spec)


def assert_as_estimated(spec: Spec, engine: str, rows: int, compiled: bool = False) -> None:
    """The peak of a pass over `rows` windows lies where the estimate says."""
    workers = len(compute_streams()) if engine == "mlx" else 1
    spec = for_passes(spec, rows, workers, compiled)
    estimate = activation_bytes(spec, engine, rows)

    # The estimates are fitted to the operations of a CPU; a plan for those of a GPU leaves room beside them.
    with patch.dict(os.environ):
        os.environ.pop(PLAIN_VARIABLE, None)
        peak = mlx_peak_bytes(spec, ahead=False) if engine == "mlx" else torch_peak_bytes(spec)
    # Of a compiled function the peak varies all the same, by a tenth: 1.14 to 1.24 times one of these estimates.
    most = estimate.most / MLX_AHEAD if engine == "mlx" and not compiled else estimate.most
    assert estimate.least <= peak <= most, f"{peak / estimate.expected:.2f} times the estimate"


def _ready(name: str, spec: Spec) -> tuple[Engine, np.ndarray, StepNumbers]:
    """(the engine with weights, a batch, the numbers of a step of the last stage)."""
    engine = synthetic_engine(name, spec)
    engine.initialise(random_weights(spec, 0))
    shape = (spec.training.batch_symbols // spec.model.seq_len, spec.model.seq_len)
    x = np.random.default_rng(0).integers(0, spec.vocabulary.size, shape).astype(np.int32)
    return engine, x, largest_step(spec)
