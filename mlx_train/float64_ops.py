"""`shared.ops.Ops` in MLX in float64, which MLX has on a CPU alone.

Of its functions only some are exact there: tanh, log, log1p, powers and products are, while exp, the logistic function
and the softmax are off by 1e-8 and more. So these are made of the exact ones.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from mlx_train import device
from mlx_train.plain_ops import MLXOps, allowed
from shared.errors import UserError


class Float64MLXOps(MLXOps):
    """MLXOps whose floats are float64; dtype arguments are ignored. It scores and does not train."""

    def asarray(self, values: np.ndarray) -> mx.array:
        values = np.asarray(values)
        if values.dtype.kind == "f":
            return mx.array(values.astype(np.float64), dtype=mx.float64)
        return mx.array(values.astype(np.int32))

    def cast(self, x: mx.array, dtype: str) -> mx.array:
        return x

    def embedding(self, weight: mx.array, index: mx.array, dtype: str) -> mx.array:
        return weight[index]

    def rms_norm(self, x: mx.array, eps: float) -> mx.array:
        return x / mx.sqrt(mx.mean(x * x, axis=-1, keepdims=True) + eps)

    def rope(self, x: mx.array, base: float) -> mx.array:
        half = x.shape[-1] // 2
        theta = np.outer(np.arange(x.shape[1]), base ** (-np.arange(half) / half))[:, None, :]
        cos, sin = self.asarray(np.cos(theta)), self.asarray(np.sin(theta))
        x1, x2 = x[..., :half], x[..., half:]
        return mx.concatenate([x1 * cos + x2 * sin, x2 * cos - x1 * sin], axis=-1)

    def attention(
        self, q: mx.array, k: mx.array, v: mx.array, window: int = 0, documents: mx.array | None = None
    ) -> mx.array:
        group = q.shape[2] // k.shape[2]
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, mx.repeat(k, group, axis=2), mx.repeat(v, group, axis=2)))
        scores = q @ mx.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5
        scores = mx.where(allowed(q.shape[2], window, documents), scores, self.asarray(np.array(-1e300)))
        return (self.softmax(scores) @ v).transpose(0, 2, 1, 3)

    def softcapped_cross_entropy(self, logits: mx.array, targets: mx.array, softcap: float) -> mx.array:
        log_probs = self.softcapped_log_softmax(logits, softcap)
        return -mx.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]

    def softcapped_log_softmax(self, logits: mx.array, softcap: float) -> mx.array:
        return softcap * mx.tanh(logits / softcap) - self.softcapped_logsumexp(logits, softcap)[..., None]

    def softcapped_logsumexp(self, logits: mx.array, softcap: float) -> mx.array:
        capped = softcap * mx.tanh(logits / softcap)
        largest = mx.max(capped, axis=-1, keepdims=True)
        return largest[..., 0] + mx.log(mx.sum(self.exp(capped - largest), axis=-1))

    def sigmoid(self, x: mx.array) -> mx.array:
        return 0.5 + 0.5 * mx.tanh(0.5 * x)

    def exp(self, x: mx.array) -> mx.array:
        return mx.power(self.asarray(np.array(math.e)), x)

    def softplus(self, x: mx.array) -> mx.array:
        return mx.maximum(x, 0.0) + mx.log1p(self.exp(-mx.abs(x)))

    def softmax(self, x: mx.array) -> mx.array:
        weights = self.exp(x - mx.max(x, axis=-1, keepdims=True))
        return weights / mx.sum(weights, axis=-1, keepdims=True)


def make_float64_ops() -> Float64MLXOps:
    """The operations on a CPU. Raises UserError where MLX computes on a GPU."""
    if device.on_gpu():
        raise UserError("engine mlx has float64 on a CPU alone, and this one is a GPU; --engine numpy needs neither")
    return Float64MLXOps()
