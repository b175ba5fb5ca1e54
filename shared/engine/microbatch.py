"""Cuts a global batch into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shared.engine.activations import activation_bytes, rows_within
from shared.engine.device_facts import DeviceFacts
from shared.optim import state_bytes
from shared.spec import Spec, spec_from_dict, spec_to_dict

# Of a device's memory, what training may fill; the rest is the framework's own, and what scoring and saving need.
MEMORY_FRAC = 0.85
# Symbols of a micro-batch on a CPU: beyond these its activations leave the cache, and nothing gets faster.
CPU_SYMBOLS = 2048


def micro_batches(spec: Spec, x: np.ndarray, workers: int = 1) -> Iterator[tuple[float, np.ndarray]]:
    """(share of the batch, rows) of each micro-batch of x [B, T], in order; the shares add up to 1.

    A micro-batch has at most training.micro_batch_symbols (0 is no limit), together with the other workers' at most
    training.memory_limit_bytes by the upper bound of the estimate, and few enough rows to give every worker one. The
    cut depends on the spec and the workers alone, so a resumed run sums in the same order.
    """
    rows = min(spec.training.micro_batch_symbols // spec.model.seq_len or len(x), -(-len(x) // workers))
    limit = spec.training.memory_limit_bytes
    if limit:
        rows = min(rows, rows_within(spec, limit // workers))
    rows = max(1, rows)
    for first in range(0, len(x), rows):
        part = x[first : first + rows]
        yield len(part) / len(x), part


def with_micro_batches(spec: Spec, engine: str, facts: DeviceFacts, ranks: int = 1) -> Spec:
    """The spec with a number for micro-batches that it leaves to the device: the fewest equal ones of a rank's share of
    the batch that fit the memory by the upper bound of the estimate."""
    if spec.training.micro_batch_symbols:
        return spec
    seq_len = spec.model.seq_len
    share = max(1, spec.training.batch_symbols // seq_len // ranks)
    if facts.kind == "cpu":
        fitting = CPU_SYMBOLS // seq_len
    else:
        # Twice the state: a step has its gradients and the update's new values beside it.
        fitting = _rows_below(spec, engine, int(MEMORY_FRAC * facts.total_bytes) - 2 * state_bytes(spec), share)
    # All of one size, because a compiler meets every other size anew.
    rows = next(rows for rows in range(max(1, min(fitting, share)), 0, -1) if share % rows == 0)
    return with_symbols(spec, rows * seq_len)


def with_symbols(spec: Spec, micro_batch_symbols: int) -> Spec:
    """The spec with that number for micro-batches if it leaves them to the device, else as it is."""
    if spec.training.micro_batch_symbols:
        return spec
    values = spec_to_dict(spec)
    values["training"]["micro_batch_symbols"] = micro_batch_symbols
    return spec_from_dict(values, origin=spec.name)


def _rows_below(spec: Spec, engine: str, limit_bytes: int, most: int) -> int:
    """The most rows, at least one and at most `most`, whose activations stay below a limit in an engine."""
    least = 1
    while least < most:
        middle = (least + most + 1) // 2
        if activation_bytes(spec, engine, middle).most <= limit_bytes:
            least = middle
        else:
            most = middle - 1
    return least
