"""Codes on steps without clipping, for an entropy coder (docs/techniques.md 11.10).

A weight is code * step * 2^(r / 8) * 2^(c / 8), with one step for the tensor and whole exponents r of its row and c of
its column. With rounding `nearest` both are 0 and the step is `step` times the tensor's rms. With `gptq` c follows the
Gram matrix of the inputs, with `two_sided` both follow the curvature of the loss, and so does the tensor's step where
`unit` is `loss`.

Steps in float32 are products of float32 numbers in a fixed order, so every machine decodes the same weights. `nearest`
rounds the step to float16 first: sums of squares differ between engines in their last bits, which that absorbs except
on the border of two float16 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from shared.errors import ArtifactError
from shared.ops import Array, NumpyOps, Ops
from shared.quantisers.entropy import entropy_of_shares
from shared.quantisers.gptq import DAMP_FRAC, feedback_factor, mean_gram
from shared.quantisers.protocol import Curvature, InputStatistics, Part, Parts
from shared.quantisers.trellis import best_codes
from shared.quantisers.trellis_states import levels_of, quantisers_of
from shared.quantisers.two_sided import (
    STEPS_PER_OCTAVE,
    Factors,
    exponents,
    factors_of,
    loss_scale,
    no_feedback,
    two_sided,
)

CODE_LIMIT = 127
ROOM = 112
"""Largest code that weights may have before feedback; what feedback lifts beyond CODE_LIMIT is clipped and fed on."""

LOSS_UNIT = 1e-3

TRELLIS_EXCESS = (0.24, 0.65)
"""a and b: codes of a trellis have a s / (1 + b s) bits more at a step of s deviations, fitted to Gaussian weights."""

# 2^(k / 8) rounded to float32, so that decoding does not depend on a library's power function.
_FRACTIONS = np.array([1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081], np.float32)


Rounding = Literal["nearest", "gptq", "two_sided"]


@dataclass(frozen=True)
class Uniform:
    """Parts: `codes` int8, `steps` float32 [1], `row_exponents` int8 [R], `column_exponents` int8 [C]."""

    step: float
    rounding: Rounding = "nearest"
    unit: Literal["rms", "loss"] = "rms"
    trellis: int = 0

    method = "uniform"
    bits = 8
    code_limit = CODE_LIMIT

    @property
    def stored_settings(self) -> Mapping[str, str | int]:
        rounding: Mapping[str, str | int] = {} if self.rounding == "nearest" else {"rounding": self.rounding}
        return {"method": self.method, **rounding} | ({"trellis": self.trellis} if self.trellis else {})

    @property
    def needs_statistics(self) -> bool:
        return self.rounding != "nearest"

    @property
    def has_surrogate(self) -> bool:
        return self.unit == "rms" and not self.trellis

    @property
    def grid(self) -> Self:
        return replace(self, rounding="nearest", unit="rms")

    def settled(self, shape: tuple[int, ...], statistics: InputStatistics | None) -> Self:
        can = _curvature(statistics, shape) if self.rounding == "two_sided" else mean_gram(statistics, shape)
        return self if can is not None else self.grid

    def parts(self, shape: tuple[int, ...]) -> tuple[Part, ...]:
        rows = Part("row_exponents", "i1", (math.prod(shape[:-1]),))
        return Part("codes", "i1", shape), Part("steps", "<f4", (1,)), rows, Part("column_exponents", "i1", shape[-1:])

    def encode(self, weights: NDArray[np.float32], statistics: InputStatistics | None = None) -> Parts:
        rows_RC = weights.reshape(-1, weights.shape[-1])
        curvature, gram_CC = _curvature(statistics, weights.shape), mean_gram(statistics, weights.shape)
        if self.rounding == "two_sided" and curvature is not None:
            columns, rows = factors_of(curvature.inputs), factors_of(curvature.outputs)
            scale = _rms(rows_RC) if self.unit == "rms" else LOSS_UNIT * loss_scale(curvature, columns, rows)
        elif self.unit == "loss":
            raise ArtifactError("a step in units of the loss needs the curvature of the loss, there is none")
        elif self.rounding == "gptq" and gram_CC is not None:
            # A trellis is followed from the first column to the last.
            columns = Factors(*feedback_factor(gram_CC, act_order=not self.trellis, damp_frac=DAMP_FRAC))
            rows, scale = no_feedback(len(rows_RC)), _rms(rows_RC)
        else:
            return self._nearest(weights)
        step = np.float32(self.step * scale)
        if not step > 0:
            return self._nearest(weights)
        across = exponents(columns.log2_step)
        down = _with_room(rows_RC, step, exponents(rows.log2_step), across)
        steps_RC = _steps(step, down, across).astype(np.float64)
        if self.trellis:
            feedback = columns.triangle, columns.weights
            codes = best_codes(rows_RC, steps_RC, self.trellis, CODE_LIMIT, feedback)
        else:
            codes = two_sided(rows_RC, steps_RC, columns, rows, CODE_LIMIT)
        return {
            "codes": codes.reshape(weights.shape),
            "steps": np.array([step], np.float32),
            "row_exponents": down,
            "column_exponents": across,
        }

    def _nearest(self, weights: NDArray[np.float32]) -> Parts:
        ops = NumpyOps()
        step = self._step(ops, ops.asarray(weights))
        if self.trellis:
            rows_RC = weights.reshape(-1, weights.shape[-1])
            steps_RC = np.full(rows_RC.shape, np.asarray(_divisor(ops, step)), np.float64)
            codes = best_codes(rows_RC, steps_RC, self.trellis, CODE_LIMIT).reshape(weights.shape)
        else:
            codes = np.asarray(_codes(ops, ops.asarray(weights), _divisor(ops, step))).astype(np.int8)
        return {
            "codes": codes,
            "steps": np.asarray(step, np.float32).reshape(1),
            "row_exponents": np.zeros(math.prod(weights.shape[:-1]), np.int8),
            "column_exponents": np.zeros(weights.shape[-1], np.int8),
        }

    def decode(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        codes, steps = parts["codes"], self.steps(shape, parts)
        if not self.trellis:
            return np.asarray(codes.astype(np.float32) * steps, np.float32)
        codes_RC = codes.reshape(-1, shape[-1])
        levels = levels_of(codes_RC, quantisers_of(codes_RC, self.trellis)).reshape(shape)
        return np.asarray(levels.astype(np.float32) * np.float32(0.5) * steps, np.float32)

    def steps(self, shape: tuple[int, ...], parts: Parts) -> NDArray[np.float32]:
        """The step of every weight."""
        return _steps(parts["steps"][0], parts["row_exponents"], parts["column_exponents"]).reshape(shape)

    def is_valid(self, parts: Parts) -> bool:
        step = parts["steps"]
        if not (np.isfinite(step).all() and (step >= 0).all() and parts["codes"].min(initial=0) >= -CODE_LIMIT):
            return False
        with np.errstate(over="ignore"):
            largest = _steps(step[0], parts["row_exponents"].max(initial=0), parts["column_exponents"].max(initial=0))
            return bool(np.isfinite(largest * np.float32(CODE_LIMIT)).all())

    def rounding_error(self, ops: Ops, weights: Array) -> Array:
        values = ops.stop_gradient(weights)
        step = self._surrogate_step(ops, values)
        return _codes(ops, values, step) * step - values

    def in_steps(self, ops: Ops, weights: Array) -> Array:
        return weights / self._surrogate_step(ops, ops.stop_gradient(weights))

    def gaussian_code_bits(self, row_length: int) -> float:
        if self.unit == "loss":
            # No property of Gaussians: bits by the loss's own allocation, between a model trained for two minutes
            # (2.16 at 0.05, 1.74 at 0.1) and one that saw 380 M symbols (3.33 at 0.07, 2.46 at 0.14).
            return max(0.3, 3.0 - 0.64 * math.log2(self.step / 0.05))
        normal = NormalDist()
        borders = (np.arange(2 * CODE_LIMIT + 2) - CODE_LIMIT - 0.5) * self.step
        shares = np.diff([normal.cdf(float(border)) for border in borders])
        a, b = TRELLIS_EXCESS if self.trellis else (0.0, 0.0)
        return entropy_of_shares(shares) + a * self.step / (1 + b * self.step)

    def _surrogate_step(self, ops: Ops, weights: Array) -> Array:
        assert self.has_surrogate, "training knows no step in units of the loss and no path of a trellis"
        return _divisor(ops, self._step(ops, weights))

    def _step(self, ops: Ops, weights: Array) -> Array:
        """`step` times the rms of all weights, in float16, but so large that the largest weight has a code."""
        count = math.prod(weights.shape)
        wanted = self.step * ops.sqrt(ops.sum(weights * weights) / count)
        largest = ops.largest(ops.largest(weights.reshape((1, -1))))[0, 0]
        least = largest / CODE_LIMIT
        return ops.float16(wanted + ops.relu(least - wanted))


def _curvature(statistics: InputStatistics | None, shape: tuple[int, ...]) -> Curvature | None:
    """The curvature of a matrix; None for a stack of matrices and where no gradient reached it."""
    curvature = statistics.curvature if statistics is not None and len(shape) == 2 else None
    return curvature if curvature is not None and np.trace(curvature.outputs) > 0 else None


def _rms(weights: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(weights, dtype=np.float64))))


def _with_room(
    rows_RC: NDArray[np.float32], step: np.float32, down: NDArray[np.int8], across: NDArray[np.int8]
) -> NDArray[np.int8]:
    """Row exponents, larger where a row would have codes above ROOM."""
    largest_R = np.abs(rows_RC / _steps(step, down, across)).max(axis=1).astype(np.float64)
    lift = np.ceil(STEPS_PER_OCTAVE * np.log2(np.maximum(largest_R / ROOM, 1.0)))
    return np.minimum(down + lift, 127).astype(np.int8)


def _steps(step: np.float32, down: NDArray[np.int8], across: NDArray[np.int8]) -> NDArray[np.float32]:
    """step * 2^(r / 8) * 2^(c / 8), [R, C]."""
    return np.asarray((step * _powers(down))[..., None] * _powers(across), np.float32)


def _powers(eighths: NDArray[np.int8]) -> NDArray[np.float32]:
    whole, rest = np.divmod(np.asarray(eighths, np.int32), STEPS_PER_OCTAVE)
    return np.ldexp(_FRACTIONS[rest], whole)


def _divisor(ops: Ops, step: Array) -> Array:
    """The step, with 1 in place of 0."""
    return step + ops.unit_step(-step)


def _codes(ops: Ops, weights: Array, step: Array) -> Array:
    codes = ops.minimum(ops.round(weights / step), CODE_LIMIT)
    return -ops.minimum(-codes, CODE_LIMIT)
