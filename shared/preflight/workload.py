"""Chooses the part of a rank's batch that one step is measured on: all of it, or what a CPU can do in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.engine.activations import rows_within
from shared.engine.device_facts import DeviceFacts
from shared.engine.flops import training_flops
from shared.engine.microbatch import micro_batches
from shared.preflight.memory import MemoryEstimate
from shared.spec import Spec, spec_from_dict, spec_to_dict
from shared.spec.auxiliary import fit_auxiliary

# Work of the forward and backward pass measured on a CPU: about a second on two cores.
CPU_FLOPS = 5e10
# What is measured may need this share of the free memory by the upper bound of the estimate.
MEASURED_MEMORY_FRAC = 0.5


@dataclass(frozen=True)
class Workload:
    """Windows of `seq_len` symbols: `rank_rows` in one rank's share of the batch, `group_rows` of them in memory
    at the same time. Measured is a step of `measured_rows` windows of `measured_seq_len` symbols."""

    seq_len: int
    rank_rows: int
    group_rows: int
    measured_rows: int
    measured_seq_len: int

    @property
    def rank_symbols(self) -> int:
        """Symbols of one rank's share of the batch."""
        return self.rank_rows * self.seq_len

    @property
    def measured_symbols(self) -> int:
        """Symbols of the measured step."""
        return self.measured_rows * self.measured_seq_len

    @property
    def passes(self) -> float:
        """How many times the measured symbols a real step of a rank has."""
        return self.rank_symbols / self.measured_symbols

    @property
    def left_out(self) -> float:
        """How many times the measured symbols are in memory in the real run."""
        return self.group_rows * self.seq_len / self.measured_symbols

    @property
    def shortened(self) -> bool:
        """Whether the measured windows are shorter than those of the run."""
        return self.measured_seq_len < self.seq_len

    @property
    def measured(self) -> str:
        """What was measured, as text."""
        of = f" of {self.measured_seq_len} symbols" if self.shortened else ""
        return f"{self.measured_rows} windows{of}" if self.measured_rows > 1 else f"1 window{of}"


def rows_of_rank(spec: Spec, ranks: int, workers: int) -> tuple[int, int]:
    """(windows in one rank's share of the batch, windows in memory at the same time)."""
    rank_rows = max(1, spec.training.batch_symbols // spec.model.seq_len // ranks)
    share = np.broadcast_to(np.int32(0), (rank_rows, spec.model.seq_len))  # Takes no memory, whatever the batch.
    _, first = next(micro_batches(spec, share, workers))
    return rank_rows, min(rank_rows, workers * len(first))


def plan_workload(spec: Spec, ranks: int, facts: DeviceFacts, memory: MemoryEstimate) -> Workload:
    """The step to measure. On a GPU all that is in memory at the same time: its allocator refuses cleanly. On a
    CPU a second of work, within half of the free memory by estimate, but one window per worker or a shorter one."""
    seq_len = spec.model.seq_len
    rank_rows, group_rows = rows_of_rank(spec, ranks, facts.workers)
    if facts.kind == "gpu":
        return Workload(seq_len, rank_rows, group_rows, group_rows, seq_len)
    row_flops = training_flops(spec).per_symbol * seq_len
    spare_bytes = int(MEASURED_MEMORY_FRAC * facts.free_bytes) - memory.state_bytes
    fitting = facts.workers * rows_within(spec, spare_bytes // facts.workers)
    rows = min(group_rows, int(CPU_FLOPS // row_flops), fitting)
    if rows >= min(facts.workers, group_rows):
        return Workload(seq_len, rank_rows, group_rows, rows, seq_len)
    rows, shorter = min(facts.workers, group_rows), seq_len
    while rows * row_flops * shorter / seq_len > CPU_FLOPS and shorter % (2 * spec.model.patch_size) == 0:
        shorter //= 2
    return Workload(seq_len, rank_rows, group_rows, rows, shorter)


def measured_spec(spec: Spec, facts: DeviceFacts) -> Spec:
    """The spec as it is measured: itself on a GPU; uncompiled and in float32 on a CPU, where compiling takes a
    minute and bfloat16 is not a training dtype."""
    if facts.kind == "gpu":
        return spec
    changes = {"training.dtype": "float32", "training.compile": False, "optimizer.ns_dtype": "float32"}
    return changed(spec, changes)


def resized(spec: Spec, seq_len: int, rows: int, changes: Mapping[str, Any] | None = None) -> Spec:
    """The spec with another sequence length and `rows` windows in every batch, and `section.key` changes."""
    symbols = rows * seq_len
    sizes = {
        "model.seq_len": seq_len,
        "training.batch_symbols": symbols,
        "training.micro_batch_symbols": symbols,
        "evaluation.stride_symbols": seq_len,
        "evaluation.batch_symbols": symbols,
    }
    loss = spec_to_dict(spec)["training"]["loss"]
    fit_auxiliary(loss, spec.model.patch_size, seq_len // spec.model.patch_size, spec.training.steps)
    return changed(spec, {**sizes, "training.loss": loss, **(changes or {})})


def changed(spec: Spec, changes: Mapping[str, Any]) -> Spec:
    """The spec with `section.key` set to other values, checked as any spec is."""
    values = spec_to_dict(spec)
    for key, value in changes.items():
        section, field = key.split(".")
        values[section][field] = value
    return spec_from_dict(values, origin=spec.name)
