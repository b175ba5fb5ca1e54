"""SDClip: one scale per row, a multiple of its standard deviation over the largest code (docs/techniques.md 11.5).

s = k sd(row) / qmax. A large k makes the step coarse and clips nothing: with k = 12.85 int6 codes are 0.41 deviations
apart and most are small, which is what the entropy coder is paid for.

The deviation is a sum, and engines add in different orders. So that training reads the codes that are packed, it is
taken of whole numbers, whose sums are exact in any order: of the row in codes as row max makes them, with as many as
keep the sum of squares below 2^24, at most 127. For Gaussian rows of 512 to 8,192 weights that and the float16 of its
parts change it by 0.04 % (standard deviation), at most 0.2 %. Every rounding after that is of one product, quotient or
root.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import ArtifactError
from shared.ops import Array, NumpyOps, Ops
from shared.quantisers.entropy import entropy_of_shares
from shared.quantisers.row_grid import RowGrid, divisors, nearest_codes, scales_of_largest

EXACT_SUM = 2**24
"""Whole numbers up to here are exact in float32."""

FACTOR_PARTS = 2**20

FINEST_LIMIT = 127
"""The largest code that a deviation is taken of: its square fits float16."""


@dataclass(frozen=True)
class SdClip(RowGrid):
    """The grid of `clip_sd` deviations. With `hessian_clip` lambda above 0, scales are times 1 + lambda (r - 1), where
    r is the mean of |W| diag(H) over the row, divided by its mean over rows; training cannot read those."""

    clip_sd: float = 12.85
    hessian_clip: float = 0.0

    method = "sd_clip"

    @property
    def has_surrogate(self) -> bool:  # type: ignore[override]
        return self.hessian_clip == 0

    @property
    def needs_statistics(self) -> bool:
        return self.rounding == "gptq" or self.hessian_clip > 0

    @property
    def grid(self) -> Self:
        return replace(self, rounding="nearest", hessian_clip=0.0)

    def row_scales(self, ops: Ops, rows: Array) -> Array:
        # Of 24 bits, so that it is the same in float32. As all of this in arithmetic that torch.compile can follow.
        factor = round(self.clip_sd / self.code_limit * FACTOR_PARTS) / FACTOR_PARTS
        step, deviation = deviation_in_steps(ops, rows)
        scales = ops.float16(step * deviation * factor)
        # A row of equal weights has no deviation.
        plain = scales_of_largest(ops, ops.largest(rows), self.code_limit)
        return scales + ops.unit_step(-scales) * plain

    def packed_scales(self, rows_RC: NDArray[np.float64], gram_CC: NDArray[np.float64] | None) -> NDArray[np.float64]:
        scales_R1 = np.asarray(self.row_scales(NumpyOps(), rows_RC))
        if self.hessian_clip == 0 or gram_CC is None:
            return scales_R1
        importance_R = np.abs(rows_RC) @ np.diag(gram_CC)
        if not np.isfinite(importance_R).all():
            raise ArtifactError("the Gram matrix of its inputs is not finite")
        ratio_R = importance_R / (importance_R.mean() or 1.0)
        factor_R = 1.0 + self.hessian_clip * (ratio_R - 1.0)
        return np.asarray(NumpyOps().float16(scales_R1 * factor_R[:, None]))

    def gaussian_code_bits(self, row_length: int) -> float:
        """Rows are taken as long: each has the deviation of the distribution."""
        step, normal = self.clip_sd / self.code_limit, NormalDist()
        borders = (np.arange(2 * self.code_limit) - self.code_limit + 0.5) * step
        shares = np.diff([0.0, *(normal.cdf(border) for border in borders), 1.0])
        return entropy_of_shares(shares)


def deviation_in_steps(ops: Ops, rows: Array) -> tuple[Array, Array]:
    """(step, deviation / step) of each row of [..., C], both as float16 holds them: [..., 1] each.

    The sum of squares is divided by C - 1. It is taken around the step nearest to the mean, so that it is whole, and
    what that adds, the square of their distance, is taken off.
    """
    columns = rows.shape[-1]
    limit = max(1, min(FINEST_LIMIT, int((EXACT_SUM / columns) ** 0.5)))
    step = scales_of_largest(ops, ops.largest(rows), limit)
    whole = nearest_codes(ops, rows, divisors(ops, step), limit)
    total = ops.sum(whole, axes=(-1,), keepdims=True)
    centre = ops.round(total / columns)
    distance = (total - centre * columns) / columns
    distance = ops.float16(ops.relu(distance) + ops.relu(-distance))
    apart = whole - centre
    squares = ops.float16(ops.sum(apart * apart, axes=(-1,), keepdims=True) / max(columns - 1, 1))
    variance = ops.float16(ops.relu(squares - distance * distance))
    return step, sqrt_as_float16(ops, variance)


def sqrt_as_float16(ops: Ops, x: Array) -> Array:
    """The float16 number nearest to the square root of float16 numbers.

    A root may be so near to the middle of two of them that the last bit of float32 decides, which not every library has
    right. So the lower one or its neighbour below is taken first; then the square of the middle to the next, which
    has 24 bits, is compared.
    """
    low = ops.float16(ops.sqrt(x) * (1.0 - 2.0**-12))
    above = ops.float16(low * (1.0 + 3 * 2.0**-12))
    middle = (low + above) / 2
    is_above = ops.unit_step(x - middle * middle)
    return low + is_above * (above - low)
