"""Symmetric codes with one scale per row, the largest magnitude over the largest code (docs/techniques.md 11.1).

A row is the last axis of a tensor. With b bits the codes are -qmax ... qmax, qmax = 2^(b - 1) - 1, and a weight is
code * scale. The scale is rounded to float16 first and the codes are computed against that stored value, so unpacking
gives exactly what packing saw. The rule is written once, over `Ops`: packing runs it in NumPy, quantisation-aware
training in the engine.

Why all of them give the same codes: an engine computes in float32, the oracle in float64 and rounds to float32 where
the rule rounds. A quotient of two float32 numbers that is rounded to float64 and then to float32 is the one that is
rounded to float32 at once, as 53 >= 2 * 24 + 2, and code * scale takes 7 + 11 bits: it is exact in both.

Why the scale is the plain maximum and no clipping ratio is searched: the codes are entropy coded, so a smaller step
costs bits. A search for the ratio of least squared error (1, .95, .9, .85, .8, .7, .6, int6, rows of 384 and 1152)
lowered the error of Gaussian rows by 3 and 8 % and raised the entropy by .04 and .10 bits; at equal size,
error * 4^entropy, that is 2 and 5 % worse, and 3 % worse for Laplace and t5 rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shared.errors import ArtifactError
from shared.ops import Array, NumpyOps, Ops
from shared.quantisers.protocol import InputStatistics, Part, Parts

# The step of float16 below its normal range, which begins at 2^-14.
SUBNORMAL_STEP = 2.0**-24

_QUANTILES = 96


@dataclass(frozen=True)
class RowMax:
    """The rule at a width of 2 to 8 bits. Parts: `codes` int8 in the shape of the weights, `scales` float16, one per
    row in row order, 0 for a row of zeros."""

    bits: int
    method = "row_max"
    needs_statistics = False

    @property
    def stored_settings(self) -> Mapping[str, str | int]:
        return {"method": self.method, "bits": self.bits}

    @property
    def code_limit(self) -> int:
        return int(2 ** (self.bits - 1)) - 1

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        return Part("codes", "i1", shape), Part("scales", "<f2", (math.prod(shape[:-1]),))

    def encode(self, weights: NDArray[np.float32], statistics: InputStatistics | None = None) -> Parts:
        ops = NumpyOps()
        rows_RC = ops.asarray(weights.reshape(-1, weights.shape[-1]))
        scales = _scales(ops, rows_RC, self.code_limit)
        if np.isinf(scales).any():
            largest = float(np.abs(rows_RC).max())
            raise ArtifactError(f"weight {largest:.3g} is too large for int{self.bits} with a float16 scale")
        codes = _codes(ops, rows_RC, _divisors(ops, scales), self.code_limit)
        return {"codes": codes.astype(np.int8).reshape(weights.shape), "scales": scales[:, 0].astype(np.float16)}

    def decode(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        rows_RC = parts["codes"].reshape(-1, shape[-1]).astype(np.float32)
        return (rows_RC * parts["scales"].astype(np.float32)[:, None]).reshape(shape)

    def is_valid(self, parts: Parts) -> bool:
        codes, scales = parts["codes"], parts["scales"]
        in_range = codes.min(initial=0) >= -self.code_limit and codes.max(initial=0) <= self.code_limit
        return bool(in_range and np.isfinite(scales).all() and (scales >= 0).all())

    def rounding_error(self, ops: Ops, weights: Array) -> Array:
        rows = ops.stop_gradient(weights)
        divisors = _divisors(ops, _scales(ops, rows, self.code_limit))
        return _codes(ops, rows, divisors, self.code_limit) * divisors - rows

    def in_steps(self, ops: Ops, weights: Array) -> Array:
        return weights / _divisors(ops, _scales(ops, ops.stop_gradient(weights), self.code_limit))

    def gaussian_code_bits(self, row_length: int) -> float:
        return _gaussian_code_bits(row_length, self.code_limit)


def _scales(ops: Ops, rows: Array, limit: int) -> Array:
    """Scale of each row of [..., C]: max |w| / limit in float16, [..., 1]; 0 for a row of zeros, infinite on overflow.

    Where float16 has too few digits left (below its normal range) it is rounded up, so that the largest weight of a row
    is never more than half a step beyond the last code.
    """
    largest = ops.largest(rows)
    scales = ops.float16(largest / limit)
    is_enough = ops.unit_step(scales * (limit + 0.5) - largest)
    return scales + SUBNORMAL_STEP * (1.0 - is_enough)


def _divisors(ops: Ops, scales: Array) -> Array:
    """The scales, with 1 in place of 0."""
    return scales + ops.unit_step(-scales)


def _codes(ops: Ops, rows: Array, divisors: Array, limit: int) -> Array:
    """Whole numbers from -limit to limit, nearest to rows / divisors, halves to even."""
    codes = ops.minimum(ops.round(rows / divisors), limit)
    return -ops.minimum(-codes, limit)


@lru_cache(maxsize=256)
def _gaussian_code_bits(row_length: int, limit: int) -> float:
    """Given the largest magnitude M of a row, its code is +-limit and the others are Gaussians cut off at M. The
    histogram is averaged over the distribution of M, P(M < m) = (2 F(m) - 1)^C, at equally likely quantiles."""
    normal = NormalDist()
    borders = np.arange(2 * limit + 2) - limit - 0.5
    shares = np.zeros(2 * limit + 1)
    for quantile in (np.arange(_QUANTILES) + 0.5) / _QUANTILES:
        largest = normal.inv_cdf((1.0 + float(quantile) ** (1.0 / row_length)) / 2.0)
        cut = np.clip(borders * (largest / limit), -largest, largest)
        inner = np.diff([normal.cdf(border) for border in cut])
        shares += inner / inner.sum() * (row_length - 1) / row_length
        shares[[0, -1]] += 0.5 / row_length
    shares /= _QUANTILES
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())
