"""What the methods with one scale per row share: parts, codes, decoding, and rounding with error feedback.

A row is the last axis of a tensor. With b bits the codes are -qmax ... qmax, qmax = 2^(b - 1) - 1, and a weight is
code * scale. A method differs in its scales alone. A scale is rounded to float16 first and the codes are computed
against that stored value, so unpacking gives exactly what packing saw. A rule of scales is written once, over `Ops`:
packing runs it in NumPy, quantisation-aware training in the engine.

Why all of them give the same codes: an engine computes in float32, the oracle in float64 and rounds to float32 where
the rule rounds. A quotient of two float32 numbers that is rounded to float64 and then to float32 is the one that is
rounded to float32 at once, as 53 >= 2 * 24 + 2, and code * scale takes 7 + 11 bits: it is exact in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import ArtifactError
from shared.ops import Array, NumpyOps, Ops
from shared.quantisers.gptq import gptq, mean_gram
from shared.quantisers.protocol import InputStatistics, Part, Parts

Rounding = Literal["nearest", "gptq"]

ColumnSteps = Callable[[int], NDArray[np.float64]]
"""The step of every row in a column."""

# The step of float16 below its normal range, which begins at 2^-14.
SUBNORMAL_STEP = 2.0**-24


@dataclass(frozen=True)
class RowGrid:
    """A method of 2 to 8 bits. Parts: `codes` int8 in the shape of the weights, `scales` float16, one per row in row
    order, 0 for a row of zeros. With `rounding` gptq the scales are those of the weights, fixed before the pass."""

    bits: int
    rounding: Rounding = "nearest"

    method = ""
    has_surrogate = True

    @property
    def stored_settings(self) -> Mapping[str, str | int]:
        return {"method": self.method, "bits": self.bits, **stored_rounding(self.rounding)}

    @property
    def needs_statistics(self) -> bool:
        return self.rounding == "gptq"

    @property
    def code_limit(self) -> int:
        return int(2 ** (self.bits - 1)) - 1

    @property
    def grid(self) -> Self:
        return replace(self, rounding="nearest")

    def settled(self, shape: tuple[int, ...], statistics: InputStatistics | None) -> Self:
        return self.grid if mean_gram(statistics, shape) is None else self

    def row_scales(self, ops: Ops, rows: Array) -> Array:
        """The scale of each row of [..., C], a number that float16 holds: [..., 1]. Not finite on overflow."""
        raise NotImplementedError

    def packed_scales(self, rows_RC: NDArray[np.float64], gram_CC: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """The scales of rows as they are packed, [R, 1]. A method may read the Gram matrix of their inputs."""
        return np.asarray(self.row_scales(NumpyOps(), rows_RC))

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        return Part("codes", "i1", shape), Part("scales", "<f2", (math.prod(shape[:-1]),))

    def encode(self, weights: NDArray[np.float32], statistics: InputStatistics | None = None) -> Parts:
        ops, gram_CC = NumpyOps(), mean_gram(statistics, weights.shape)
        rows_RC = ops.asarray(weights.reshape(-1, weights.shape[-1]))
        with np.errstate(invalid="ignore"):
            scales = self.packed_scales(rows_RC, gram_CC)
        if not np.isfinite(scales).all():
            largest = float(np.abs(rows_RC).max())
            raise ArtifactError(f"weight {largest:.3g} is too large for int{self.bits} with a float16 scale")
        steps, limit = divisors(ops, scales), self.code_limit
        if self.rounding == "gptq" and gram_CC is not None:
            codes = gptq_codes(rows_RC, gram_CC, lambda column: steps[:, 0], limit)
        else:
            codes = nearest_codes(ops, rows_RC, steps, limit).astype(np.int8)
        return {"codes": codes.reshape(weights.shape), "scales": scales[:, 0].astype(np.float16)}

    def decode(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        rows_RC = parts["codes"].reshape(-1, shape[-1]).astype(np.float32)
        return (rows_RC * parts["scales"].astype(np.float32)[:, None]).reshape(shape)

    def steps(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        return np.asarray(parts["scales"].astype(np.float32).reshape(*shape[:-1], 1))

    def is_valid(self, parts: Parts) -> bool:
        return are_codes(parts["codes"], -self.code_limit, self.code_limit) and are_scales(parts["scales"])

    def rounding_error(self, ops: Ops, weights: Array) -> Array:
        rows = ops.stop_gradient(weights)
        steps = divisors(ops, self.row_scales(ops, rows))
        return nearest_codes(ops, rows, steps, self.code_limit) * steps - rows

    def in_steps(self, ops: Ops, weights: Array) -> Array:
        return weights / divisors(ops, self.row_scales(ops, ops.stop_gradient(weights)))


def stored_rounding(rounding: Rounding) -> dict[str, str | int]:
    """The rounding as a tensor table has it: left out where it is the nearest code."""
    return {} if rounding == "nearest" else {"rounding": rounding}


def scales_of_largest(ops: Ops, largest: Array, limit: int) -> Array:
    """Scale with which a magnitude is the largest code: largest / limit in float16; 0 for 0, infinite on overflow.

    Where float16 has too few digits left (below its normal range) it is rounded up, so that the magnitude is never
    more than half a step beyond the last code.
    """
    scales = ops.float16(largest / limit)
    is_enough = ops.unit_step(scales * (limit + 0.5) - largest)
    return scales + SUBNORMAL_STEP * (1.0 - is_enough)


def divisors(ops: Ops, scales: Array) -> Array:
    """The scales, with 1 in place of 0."""
    return scales + ops.unit_step(-scales)


def nearest_codes(ops: Ops, rows: Array, steps: Array, limit: int) -> Array:
    """Whole numbers from -limit to limit, nearest to rows / steps, halves to even."""
    codes = ops.minimum(ops.round(rows / steps), limit)
    return -ops.minimum(-codes, limit)


def gptq_codes(
    rows_RC: NDArray[np.float64], gram_CC: NDArray[np.float64], steps_of: ColumnSteps, limit: int
) -> NDArray[np.int8]:
    """Codes -limit to limit of a matrix by GPTQ, with the step of each row in each column."""

    def quantise_column(
        values_R: NDArray[np.float64], column: int, weight: float
    ) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        steps_R = steps_of(column)
        codes_R = np.clip(np.rint(values_R / steps_R), -limit, limit)
        return codes_R.astype(np.int32), codes_R * steps_R

    return gptq(rows_RC, gram_CC, quantise_column)[0].astype(np.int8)


def are_codes(codes: NDArray[np.integer], lowest: int, highest: int) -> bool:
    """Whether all codes are within a range."""
    return bool(codes.min(initial=0) >= lowest and codes.max(initial=0) <= highest)


def are_scales(scales: NDArray[np.floating]) -> bool:
    """Whether these can be scales: finite and not negative."""
    return bool(np.isfinite(scales).all() and (scales >= 0).all())
