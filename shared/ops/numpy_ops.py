"""The oracle: every operation exactly as defined, in NumPy float64.

Slow and plain on purpose. The parity check holds both engines to it, and it scores artifacts where
no framework is installed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.ops.composed import ComposedOps
from shared.ops.noise import mixed


class NumpyOps(ComposedOps):
    """`shared.ops.Ops` in float64; dtype arguments are ignored."""

    name = "numpy"

    def asarray(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)

    def to_numpy(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x)

    def cast(self, x: np.ndarray, dtype: str) -> np.ndarray:
        return x

    def cast_like(self, x: np.ndarray, like: np.ndarray) -> np.ndarray:
        # Between integers and floats only: the oracle has one dtype of each kind.
        return np.asarray(x).astype(like.dtype) if like.dtype.kind == "i" else x

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x @ weight.T

    def embedding(self, weight: np.ndarray, index: np.ndarray, dtype: str) -> np.ndarray:
        return weight[index]

    def rms_norm(self, x: np.ndarray, eps: float) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)

    def rope(self, x: np.ndarray, base: float) -> np.ndarray:
        half = x.shape[-1] // 2
        theta = np.outer(np.arange(x.shape[1]), base ** (-np.arange(half) / half))
        cos, sin = np.cos(theta)[:, None, :], np.sin(theta)[:, None, :]
        x1, x2 = x[..., :half], x[..., half:]
        return np.concatenate([x1 * cos + x2 * sin, x2 * cos - x1 * sin], axis=-1)

    def attention(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int = 0, documents: np.ndarray | None = None
    ) -> np.ndarray:
        time, group = q.shape[1], q.shape[2] // k.shape[2]
        k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
        scores = np.einsum("bthc,bshc->bhts", q, k) / np.sqrt(q.shape[-1])
        allowed = np.tri(time, dtype=bool)
        if window:
            allowed = allowed & ~np.tri(time, k=-window, dtype=bool)
        if documents is not None:
            allowed = allowed & (documents[:, None, :, None] == documents[:, None, None, :])
        scores = np.where(allowed, scores, -np.inf)
        return np.einsum("bhts,bshc->bthc", np.exp(_log_softmax(scores)), v)

    def leaky_relu_squared_mlp(
        self, x: np.ndarray, up: np.ndarray, down: np.ndarray, negative_slope: float
    ) -> np.ndarray:
        hidden = x @ up.T
        return np.where(hidden > 0, hidden, negative_slope * hidden) ** 2 @ down.T

    def softcapped_cross_entropy(self, logits: np.ndarray, targets: np.ndarray, softcap: float) -> np.ndarray:
        log_probs = self.softcapped_log_softmax(logits, softcap)
        return -np.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]

    def softcapped_log_softmax(self, logits: np.ndarray, softcap: float) -> np.ndarray:
        return _log_softmax(softcap * np.tanh(logits / softcap))

    def softcapped_logsumexp(self, logits: np.ndarray, softcap: float) -> np.ndarray:
        capped = softcap * np.tanh(logits / softcap)
        largest = capped.max(axis=-1, keepdims=True)
        return largest[..., 0] + np.log(np.exp(capped - largest).sum(axis=-1))

    def concatenate(self, arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
        return np.concatenate(arrays, axis=axis)

    def stack(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(arrays)

    def broadcast_to(self, x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        return np.broadcast_to(x, tuple(shape))

    def transpose(self, x: np.ndarray) -> np.ndarray:
        return np.swapaxes(x, -1, -2)

    def sum(self, x: np.ndarray, axes: Sequence[int] | None = None, keepdims: bool = False) -> np.ndarray:
        return np.sum(x, axis=None if axes is None else tuple(axes), keepdims=keepdims)

    def sqrt(self, x: np.ndarray) -> np.ndarray:
        return np.sqrt(x)

    def sigmoid(self, x: np.ndarray) -> np.ndarray:
        # Through tanh, which never overflows.
        return 0.5 + 0.5 * np.tanh(0.5 * x)

    def exp(self, x: np.ndarray) -> np.ndarray:
        return np.exp(x)

    def log(self, x: np.ndarray) -> np.ndarray:
        return np.log(x)

    def softplus(self, x: np.ndarray) -> np.ndarray:
        return np.logaddexp(x, 0.0)

    def running_sum(self, x: np.ndarray, axis: int) -> np.ndarray:
        return np.cumsum(x, axis=axis)

    def lower_triangle(self, x: np.ndarray, diagonal: int = 0) -> np.ndarray:
        return np.tril(x, diagonal)

    def running_count(self, x: np.ndarray, value: int) -> np.ndarray:
        return np.cumsum(x == value, axis=1)

    def relu(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0.0)

    def unit_step(self, x: np.ndarray) -> np.ndarray:
        return (x >= 0).astype(x.dtype)

    def minimum(self, x: np.ndarray, limit: float) -> np.ndarray:
        return np.minimum(x, limit)

    def softmax(self, x: np.ndarray) -> np.ndarray:
        return np.exp(_log_softmax(x))

    def power(self, x: np.ndarray, exponent: float) -> np.ndarray:
        return x**exponent

    def largest(self, x: np.ndarray) -> np.ndarray:
        return np.abs(x).max(axis=-1, keepdims=True, initial=0.0)

    def round(self, x: np.ndarray) -> np.ndarray:
        # Of float32, though the oracle is in float64: a tie must round as it does in the engines.
        return np.rint(x.astype(np.float32)).astype(np.float64)

    def float16(self, x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return x.astype(np.float32).astype(np.float16).astype(np.float64)

    def stop_gradient(self, x: np.ndarray) -> np.ndarray:
        return x

    def row_noise(self, x: np.ndarray, counter: np.ndarray, salt: int) -> np.ndarray:
        index = np.arange(x.size, dtype=np.uint32).reshape(x.shape)
        bits = mixed(index, np.asarray(counter).astype(np.uint32), salt)
        return ((bits >> 8) / 2.0**24 - 0.5) * self.largest(x)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
