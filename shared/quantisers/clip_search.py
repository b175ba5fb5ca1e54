"""Clip search, as in GPTQ-lite: one of five quantiles of |row| as the last code (docs/techniques.md 11.5).

One quantile for the whole tensor, that of the least squared error. Training cannot read it: a quantile needs sorted
rows, and which one is best may change with every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shared.errors import SpecError
from shared.ops import Array, NumpyOps, Ops
from shared.quantisers.entropy import entropy_of_shares
from shared.quantisers.row_grid import RowGrid, divisors, nearest_codes, scales_of_largest

QUANTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
"""The published ones. Of equally good ones the first is taken."""

# Weights of the sample whose entropy stands for Gaussian weights.
_SAMPLE = 1 << 18


@dataclass(frozen=True)
class ClipSearch(RowGrid):
    """The grid with the best of five last codes."""

    method = "clip_search"
    has_surrogate = False

    def row_scales(self, ops: Ops, rows: Array) -> Array:
        raise SpecError("artifact: training cannot read method clip_search, its quantiles need sorted rows")

    def packed_scales(self, rows_RC: NDArray[np.float64], gram_CC: NDArray[np.float64] | None) -> NDArray[np.float64]:
        ops, magnitudes = NumpyOps(), np.abs(rows_RC)
        found: list[tuple[float, NDArray[np.float64]]] = []
        for quantile_R in np.quantile(magnitudes, QUANTILES, axis=1):
            scales = scales_of_largest(ops, quantile_R[:, None], self.code_limit)
            steps = divisors(ops, scales)
            error = rows_RC - nearest_codes(ops, rows_RC, steps, self.code_limit) * steps
            found.append((float((error * error).sum()), scales))
        return min(found, key=lambda each: each[0])[1]

    def gaussian_code_bits(self, row_length: int) -> float:
        return _gaussian_code_bits(self, row_length)


@lru_cache(maxsize=64)
def _gaussian_code_bits(grid: ClipSearch, row_length: int) -> float:
    """Of a sample: which quantile is best has no formula."""
    rows = np.random.default_rng(0).standard_normal((max(2, _SAMPLE // row_length), row_length))
    counts = np.bincount(grid.grid.encode(rows.astype(np.float32))["codes"].reshape(-1).astype(int) + grid.code_limit)
    shares = counts[counts > 0] / counts.sum()
    return entropy_of_shares(shares)
