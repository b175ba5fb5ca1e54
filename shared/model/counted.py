"""Symbols that a window reads without counting them in the training loss: context of what is learnt, and padding.

They come to a step as ~s = -1 - s in place of s, with training.loss.counts "marked"; scores have no such symbols.
"""

from __future__ import annotations

import numpy as np

from shared.ops import Array, Ops


def uncounted(x: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """x [B, T] int32 with ~x where `counted` [B, T] bool is false."""
    return np.where(counted, x, ~x).astype(np.int32)


def split_counted(ops: Ops, x_BT: Array) -> tuple[Array, Array]:
    """(the symbols, 1 where they count and else 0) of what `uncounted` made, both int32 [B, T]."""
    counts_BT = ops.unit_step(x_BT)
    return counts_BT * x_BT + (1 - counts_BT) * (-1 - x_BT), counts_BT
