"""`shared.ops.Ops` in MLX's own operations, for any device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_train.failures import told
from mlx_train.table_gradient import read_rows
from shared.ops.composed import ComposedOps, symbol_context_by_tables
from shared.ops.noise import mixed

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


class MLXOps(ComposedOps):
    """Array operations in MLX; definitions in shared.ops.protocol."""

    name = "mlx"
    symbol_context = symbol_context_by_tables

    def asarray(self, values: np.ndarray) -> mx.array:
        values = np.asarray(values)
        return mx.array(values.astype(np.float32 if values.dtype.kind == "f" else np.int32))

    @told
    def to_numpy(self, x: mx.array) -> np.ndarray:
        return np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)

    def cast(self, x: mx.array, dtype: str) -> mx.array:
        return x.astype(DTYPES[dtype])

    def cast_like(self, x: mx.array, like: mx.array) -> mx.array:
        return x.astype(like.dtype)

    def linear(self, x: mx.array, weight: mx.array) -> mx.array:
        return x @ weight.astype(x.dtype).T

    def embedding(self, weight: mx.array, index: mx.array, dtype: str) -> mx.array:
        return read_rows(weight, index).astype(DTYPES[dtype])

    def rms_norm(self, x: mx.array, eps: float) -> mx.array:
        return mx.fast.rms_norm(x, None, eps)

    def rope(self, x: mx.array, base: float) -> mx.array:
        half = x.shape[-1] // 2
        cos, sin = (mx.array(table).astype(x.dtype) for table in rotation_tables(x.shape[1], half, base))
        x1, x2 = mx.split(x, 2, axis=-1)  # the gradient of two slices is six kernels, of a split two
        return mx.concatenate([x1 * cos + x2 * sin, x2 * cos - x1 * sin], axis=-1)

    def attention(
        self, q: mx.array, k: mx.array, v: mx.array, window: int = 0, documents: mx.array | None = None
    ) -> mx.array:
        mask = "causal" if masks_nothing(q.shape[1], window, documents) else allowed(q.shape[1], window, documents)
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
        return y.transpose(0, 2, 1, 3)

    def leaky_relu_squared_mlp(self, x: mx.array, up: mx.array, down: mx.array, negative_slope: float) -> mx.array:
        hidden = self.linear(x, up)
        hidden = mx.maximum(hidden, negative_slope * hidden)
        return self.linear(hidden * hidden, down)

    def softcapped_cross_entropy(self, logits: mx.array, targets: mx.array, softcap: float) -> mx.array:
        capped = softcap * mx.tanh(logits.astype(mx.float32) / softcap)
        picked = mx.take_along_axis(capped, targets[..., None], axis=-1)[..., 0]
        return mx.logsumexp(capped, axis=-1) - picked

    def softcapped_log_softmax(self, logits: mx.array, softcap: float) -> mx.array:
        capped = softcap * mx.tanh(logits.astype(mx.float32) / softcap)
        return capped - mx.logsumexp(capped, axis=-1, keepdims=True)

    def softcapped_logsumexp(self, logits: mx.array, softcap: float) -> mx.array:
        return mx.logsumexp(softcap * mx.tanh(logits.astype(mx.float32) / softcap), axis=-1)

    def concatenate(self, arrays: Sequence[mx.array], axis: int) -> mx.array:
        return mx.concatenate(list(arrays), axis=axis)

    def stack(self, arrays: Sequence[mx.array]) -> mx.array:
        return mx.stack(list(arrays))

    def broadcast_to(self, x: mx.array, shape: Sequence[int]) -> mx.array:
        return mx.broadcast_to(x, tuple(shape))

    def transpose(self, x: mx.array) -> mx.array:
        return mx.swapaxes(x, -1, -2)

    def residual_norm(
        self, x: mx.array, added: mx.array | None, first: mx.array | None, mix: mx.array | None, eps: float
    ) -> tuple[mx.array, mx.array]:
        total = x if added is None else x + added
        if mix is not None:
            own, firsts = mix.astype(total.dtype)  # two views; an index would be a gather, and its gradient a scatter
            total = own * total + firsts * first
        return total, self.rms_norm(total, eps)

    def sum(self, x: mx.array, axes: Sequence[int] | None = None, keepdims: bool = False) -> mx.array:
        return mx.sum(x, axis=None if axes is None else tuple(axes), keepdims=keepdims)

    def sqrt(self, x: mx.array) -> mx.array:
        return mx.sqrt(x)

    def sigmoid(self, x: mx.array) -> mx.array:
        return mx.sigmoid(x)

    def exp(self, x: mx.array) -> mx.array:
        return mx.exp(x)

    def log(self, x: mx.array) -> mx.array:
        return mx.log(x)

    def softplus(self, x: mx.array) -> mx.array:
        return mx.logaddexp(x, 0.0)

    def running_sum(self, x: mx.array, axis: int) -> mx.array:
        return mx.cumsum(x, axis=axis)

    def lower_triangle(self, x: mx.array, diagonal: int = 0) -> mx.array:
        return mx.tril(x, diagonal)

    def running_count(self, x: mx.array, value: int) -> mx.array:
        return mx.cumsum((x == value).astype(mx.int32), axis=1)

    def relu(self, x: mx.array) -> mx.array:
        return mx.maximum(x, 0.0)

    def unit_step(self, x: mx.array) -> mx.array:
        return (x >= 0).astype(x.dtype)

    def minimum(self, x: mx.array, limit: float) -> mx.array:
        return mx.minimum(x, limit)

    def softmax(self, x: mx.array) -> mx.array:
        return mx.softmax(x, axis=-1, precise=True)

    def power(self, x: mx.array, exponent: float) -> mx.array:
        return mx.power(x, exponent)

    def largest(self, x: mx.array) -> mx.array:
        return mx.max(mx.abs(x), axis=-1, keepdims=True)

    def round(self, x: mx.array) -> mx.array:
        return mx.round(x)

    def float16(self, x: mx.array) -> mx.array:
        return x.astype(mx.float16).astype(x.dtype)

    def stop_gradient(self, x: mx.array) -> mx.array:
        return mx.stop_gradient(x)

    def row_noise(self, x: mx.array, counter: mx.array, salt: int) -> mx.array:
        rows = mx.stop_gradient(x)
        index = mx.arange(rows.size, dtype=mx.uint32).reshape(rows.shape)
        bits = mixed(index, counter.astype(mx.uint32), salt)
        uniform = (bits >> 8).astype(mx.float32) * 2.0**-24
        return (uniform - 0.5) * self.largest(rows)


def masks_nothing(time: int, window: int, documents: mx.array | None) -> bool:
    """Whether window and documents leave plain causal attention over `time` positions."""
    return documents is None and not 0 < window < time


def allowed(time: int, window: int, documents: mx.array | None) -> mx.array:
    """Which key each query may read, bool [1 or B, 1, T, T]: shared.ops.Ops.attention."""
    mask = mx.array(causal_mask(time, window))[None, None]
    if documents is None:
        return mask
    return mx.logical_and(mask, documents[:, None, :, None] == documents[:, None, None, :])


@lru_cache(maxsize=32)
def causal_mask(time: int, window: int) -> np.ndarray:
    """Position t reads t - window + 1 ... t, or 0 ... t where the window is 0: bool [T, T]."""
    mask = np.tri(time, dtype=bool)
    return mask & ~np.tri(time, k=-window, dtype=bool) if window else mask


@lru_cache(maxsize=32)
def rotation_tables(time: int, half: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of the RoPE angles, float32 [T, 1, C/2]."""
    theta = np.outer(np.arange(time), base ** (-np.arange(half) / half))[:, None, :]
    return np.cos(theta).astype(np.float32), np.sin(theta).astype(np.float32)
