"""Cuts a global batch into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shared.engine.activations import rows_within
from shared.spec import Spec


def micro_batches(spec: Spec, x: np.ndarray, workers: int = 1) -> Iterator[tuple[float, np.ndarray]]:
    """(share of the batch, rows) of each micro-batch of x [B, T], in order; the shares add up to 1.

    A micro-batch has at most training.micro_batch_symbols, together with the other workers' at most
    training.memory_limit_bytes by the upper bound of the estimate, and few enough rows to give every worker one. The
    cut depends on the spec and the workers alone, so a resumed run sums in the same order.
    """
    rows = min(spec.training.micro_batch_symbols // spec.model.seq_len, -(-len(x) // workers))
    limit = spec.training.memory_limit_bytes
    if limit:
        rows = min(rows, rows_within(spec, limit // workers))
    rows = max(1, rows)
    for first in range(0, len(x), rows):
        part = x[first : first + rows]
        yield len(part) / len(x), part
