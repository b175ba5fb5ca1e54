"""The operations that MLX's CPU backend does slowly, with gradients by hand.

On a CPU each primitive is one single-threaded pass over memory, and automatic differentiation makes many
of them. Each function here states its gradient with the values it already has. On a GPU the plain
operations of mlx_train.plain_ops are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from mlx_train.cpu_attention import can_chunk, causal_attention
from mlx_train.cpu_math import LOG2E, exp2, tanh
from mlx_train.plain_ops import DTYPES, MLXOps, masks_nothing, rotation_tables

# Above it exp(logit) without subtracting a maximum could overflow float32.
UNSHIFTED_SOFTCAP = 60.0


class MLXCPUOps(MLXOps):
    """MLXOps for float32 on a CPU."""

    def embedding(self, weight: mx.array, index: mx.array, dtype: str) -> mx.array:
        return _read_rows(weight, index).astype(DTYPES[dtype])

    def rms_norm(self, x: mx.array, eps: float) -> mx.array:
        if x.dtype != mx.float32:
            return super().rms_norm(x, eps)
        return _rms_norm(eps)(x)

    def rope(self, x: mx.array, base: float) -> mx.array:
        if x.dtype != mx.float32:
            return super().rope(x, base)
        return _rope(x.shape[1], x.shape[-1] // 2, base)(x)

    def sum(self, x: mx.array, axes: Sequence[int] | None = None, keepdims: bool = False) -> mx.array:
        # One axis at a time: MLX adds up a reduction over several axes in one float32 accumulator, which is off by
        # 1e-3 after two million values.
        for axis in sorted(range(x.ndim) if axes is None else (axis % x.ndim for axis in axes), reverse=True):
            x = mx.sum(x, axis=axis, keepdims=keepdims)
        return x

    def attention(
        self, q: mx.array, k: mx.array, v: mx.array, window: int = 0, documents: mx.array | None = None
    ) -> mx.array:
        time = q.shape[1]
        if q.dtype != mx.float32 or not can_chunk(time) or not masks_nothing(time, window, documents):
            return super().attention(q, k, v, window, documents)
        return causal_attention(q, k, v)

    def leaky_relu_squared_mlp(self, x: mx.array, up: mx.array, down: mx.array, negative_slope: float) -> mx.array:
        return self.linear(_leaky_relu_squared(negative_slope)(self.linear(x, up)), down)

    def softcapped_cross_entropy(self, logits: mx.array, targets: mx.array, softcap: float) -> mx.array:
        if logits.dtype != mx.float32 or softcap > UNSHIFTED_SOFTCAP:
            return super().softcapped_cross_entropy(logits, targets, softcap)
        rows = logits.reshape(-1, logits.shape[-1])
        return _cross_entropy(softcap)(rows, targets.reshape(-1)).reshape(targets.shape)


@mx.custom_function
def _read_rows(table: mx.array, index: mx.array) -> mx.array:
    return table[index]


@_read_rows.vjp
def _read_rows_vjp(primals: tuple[mx.array, mx.array], grad: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    # The same sums in the same order as of a gather's own gradient, which walks through each row in general steps.
    table, index = primals
    rows = grad.reshape(-1, table.shape[1])
    columns = mx.broadcast_to(index.reshape(-1, 1), rows.shape)
    _, (added,) = mx.vjp(lambda table: mx.take_along_axis(table, columns, 0), [mx.zeros_like(table)], [rows])
    return added, mx.zeros_like(index)


def _cross_entropy(softcap: float) -> Callable[[mx.array, mx.array], mx.array]:
    """Nats [R] of logits [R, V]: logits are at most `softcap`, so exp needs no maximum. The forward pass
    also keeps exp(z) dz/dlogit, which is the gradient up to one factor per row."""

    @mx.custom_function
    def core(logits: mx.array, targets: mx.array) -> tuple[mx.array, ...]:
        capped = tanh(logits * (1.0 / softcap))
        exponential = exp2(capped * (softcap * LOG2E))
        slope = exponential - exponential * capped * capped
        total = exponential @ mx.ones((logits.shape[-1], 1))
        picked = mx.take_along_axis(capped, targets[:, None], axis=1)
        return (mx.log(total) - softcap * picked)[:, 0], total, slope, picked

    @core.vjp
    def core_vjp(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        targets = primals[1][:, None]
        _, total, slope, picked = outputs
        grad = cotangents[0][:, None]
        factor = grad / total
        at_target = mx.take_along_axis(slope, targets, axis=1) * factor - grad * (1.0 - picked * picked)
        return mx.put_along_axis(slope * factor, targets, at_target, axis=1), mx.zeros_like(primals[1])

    return lambda logits, targets: core(logits, targets)[0]


def _rms_norm(eps: float) -> Callable[[mx.array], mx.array]:
    # Means, and rows of one number, are products with ones: here a sum along an axis takes MLX three times as long, and
    # a fused loop over an array that is broadcast ten times.
    def mean(x: mx.array) -> mx.array:
        return x @ mx.full((x.shape[-1], 1), 1.0 / x.shape[-1])

    def spread(scale: mx.array, x: mx.array) -> mx.array:
        return scale @ mx.ones((1, x.shape[-1]))

    @mx.custom_function
    def norm(x: mx.array) -> mx.array:
        return x * spread(mx.rsqrt(mean(x * x) + eps), x)

    @norm.vjp
    def norm_vjp(x: mx.array, grad: mx.array, y: mx.array) -> mx.array:
        scale = mx.rsqrt(mean(x * x) + eps)
        return spread(scale, x) * grad - y * spread(scale * mean(grad * y), x)

    return norm


def _leaky_relu_squared(negative_slope: float) -> Callable[[mx.array], mx.array]:
    @mx.custom_function
    def activate(x: mx.array) -> mx.array:
        y = mx.maximum(x, negative_slope * x)
        return y * y

    @activate.vjp
    def activate_vjp(x: mx.array, grad: mx.array, _: mx.array) -> mx.array:
        # phi'(x) = 2x above zero and 2 slope^2 x below: the larger of both, because slopes are at most 1.
        return (grad + grad) * mx.maximum(x, negative_slope**2 * x)

    return activate


def _rope(time: int, half: int, base: float) -> Callable[[mx.array], mx.array]:
    cos, sin = (mx.array(table) for table in rotation_tables(time, half, base))

    def rotate(x: mx.array, sin: mx.array) -> mx.array:
        first, second = x[..., :half], x[..., half:]
        return mx.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)

    @mx.custom_function
    def rope(x: mx.array) -> mx.array:
        return rotate(x, sin)

    @rope.vjp
    def rope_vjp(_: mx.array, grad: mx.array, __: mx.array) -> mx.array:
        return rotate(grad, -sin)  # a rotation's transpose is the opposite rotation

    return rope
