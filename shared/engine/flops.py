"""Floating-point operations of a spec's model and optimizer, counted by running both on shapes without values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from shared.engine.activations import loss_of_shapes
from shared.engine.microbatch import micro_batches
from shared.model import forward, parameter_manifest, trained_parameters
from shared.ops import ShapeOps
from shared.optim import by_muon, orthogonalise
from shared.spec import Spec


@dataclass(frozen=True)
class Flops:
    """Operations of one training run's parts.

    `matrices` and `attention`: training operations per symbol, forward and backward, in products with weights and of
    activations. `optimizer`: operations per optimizer step of Newton-Schulz, whatever the batch.
    """

    matrices: float
    attention: float
    optimizer: float

    @property
    def per_symbol(self) -> float:
        """Training operations of the model per symbol: what a share of hardware peak is measured in."""
        return self.matrices + self.attention


def training_flops(spec: Spec) -> Flops:
    """The operations of training a spec, at the end of a run, where a loop counts in full.

    The backward pass has one product for each input of a product that has a gradient: two where nothing is frozen,
    hence the usual six operations per weight and position. What a micro-batch does once, whatever its rows (the
    product of an adapter's factors), is counted in the micro-batches of one rank and worker.
    """
    windows = spec.training.batch_symbols // spec.model.seq_len
    batch = np.broadcast_to(np.int32(0), (windows, spec.model.seq_len))  # Takes no memory, whatever the batch.
    total: Counter[str] = Counter()
    for rows, times in Counter(len(part) for _, part in micro_batches(spec, batch)).items():
        ops, loss, _ = loss_of_shapes(spec, rows)
        for kind, operations in (ops.forward + ops.backward(loss)).items():
            total[kind] += times * operations
    return Flops(
        matrices=total["matrices"] / batch.size,
        attention=total["activations"] / batch.size,
        optimizer=newton_schulz_flops(spec),
    )


def scoring_flops(spec: Spec, rows: int = 1) -> float:
    """Operations per symbol of a forward pass over `rows` windows."""
    ops = ShapeOps()
    params = {parameter.name: ops.array(parameter.shape) for parameter in parameter_manifest(spec)}
    forward(ops, spec, params, ops.array((rows, spec.model.seq_len)))
    return ops.forward.total() / (rows * spec.model.seq_len)


def newton_schulz_flops(spec: Spec) -> float:
    """Operations of one step's orthogonalisation of all matrices that are trained (docs/techniques.md 9.2)."""
    ops, optimizer = ShapeOps(), spec.optimizer
    for parameter in trained_parameters(spec):
        if by_muon(optimizer, parameter.group):
            update = ops.array((1, *parameter.shape))
            orthogonalise(ops, update, optimizer.ns_steps, optimizer.ns_dtype, optimizer.ns_coefficients)
    return float(ops.forward.total())
