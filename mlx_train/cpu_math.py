"""exp and tanh that a compiler can vectorise.

MLX's own float32 exp and tanh work on one element at a time on a CPU, 13 and 17 ns each: a quarter of a
training step. As polynomials they are multiplications and additions that mx.compile fuses into one C++
loop, 4 ns; even unfused they take 7. None of them has a gradient: they serve hand-written ones.
"""

from __future__ import annotations

import mlx.core as mx

LOG2E, LN2 = 1.4426950408889634, 0.6931471805599453

# Largest magnitude for which 2^y is a normal float32.
EXPONENT_LIMIT = 126.0

# Adding and subtracting 1.5 * 2^23 rounds a float32 of moderate size to the nearest integer.
_ROUNDER = 12582912.0

# 2^f - 1 on [-1/2, 1/2] as a polynomial without constant term: minimax, relative error below 2e-8.
_EXP2M1 = (
    0.6931471880293424,
    0.24022650922342728,
    0.05550357104253095,
    0.009618056669889543,
    0.0013390867351329083,
    0.00015461447451506453,
)


def exp2(y: mx.array) -> mx.array:
    """2^y for float32 y <= 126, exactly 0 below -126; relative error about 1e-7."""
    bounded = mx.maximum(y, -EXPONENT_LIMIT)
    whole = (bounded + _ROUNDER) - _ROUNDER
    value = (1.0 + _exp2m1(bounded - whole)) * _power_of_two(whole)
    return mx.where(y < -EXPONENT_LIMIT, 0.0, value)


def tanh(u: mx.array) -> mx.array:
    """tanh(u) of float32: e / (e + 2) with e = exp(2u) - 1, formed without cancellation near zero."""
    y = mx.clip(u * (2.0 * LOG2E), -40.0, 40.0)  # beyond, tanh is 1 to the last bit
    whole = (y + _ROUNDER) - _ROUNDER
    scale = _power_of_two(whole)
    expm1 = scale * _exp2m1(y - whole) + (scale - 1.0)
    return expm1 / (expm1 + 2.0)


def _exp2m1(f: mx.array) -> mx.array:
    c = _EXP2M1
    square = f * f
    return f * c[0] + square * ((c[1] + c[2] * f) + square * ((c[3] + c[4] * f) + square * c[5]))


def _power_of_two(whole: mx.array) -> mx.array:
    """2^whole for an integer-valued float32, by writing the exponent bits."""
    return mx.view(mx.left_shift(whole.astype(mx.int32) + 127, 23), mx.float32)
