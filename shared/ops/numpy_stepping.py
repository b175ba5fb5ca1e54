"""Steps of the NumPy oracle in few calls of NumPy: for one position a call costs more than what it computes.

Each operation is the one that shared.ops.protocol defines; sums are taken in another order.
"""

from __future__ import annotations

import numpy as np

from shared.ops.stepping_ops import MASKED, SteppingOps

# Up to it the exponential of a logit needs no maximum.
UNSHIFTED_SOFTCAP = 500.0


class NumpySteppingOps(SteppingOps):
    """SteppingOps over NumpyOps."""

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        # A view is made anew in each pass.
        return self._product(x, weight.T if weight.base is not None else self._transposed(weight))

    def rms_norm(self, x: np.ndarray, eps: float) -> np.ndarray:
        return x / np.sqrt(np.vecdot(x, x) / x.shape[-1] + eps)[..., None]

    def gained_linear(self, x: np.ndarray, weight: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return self._product(x, self.once(lambda: np.ascontiguousarray((gain[:, None] * weight).T), gain, weight))

    def leaky_relu_squared_mlp(
        self, x: np.ndarray, up: np.ndarray, down: np.ndarray, negative_slope: float
    ) -> np.ndarray:
        return self.linear(self._hidden(x, up, negative_slope), down)

    def gained_mlp(
        self, x: np.ndarray, up: np.ndarray, down: np.ndarray, negative_slope: float, gain: np.ndarray
    ) -> np.ndarray:
        return self.gained_linear(self._hidden(x, up, negative_slope), down, gain)

    def attention(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int = 0, documents: np.ndarray | None = None
    ) -> np.ndarray:
        if self.position == 0 or q.shape[1] > 1:
            return super().attention(q, k, v, window, documents)
        state, end = self._state(), self.position + 1
        keys, values, numbers = state
        self._keep(state)
        keys[..., self.position], values[:, :, self.position] = k[:, 0], v[:, 0]
        first = max(0, end - window) if window else 0
        scores = (q[:, 0] * q.shape[-1] ** -0.5).reshape((*keys.shape[:2], -1, q.shape[-1])) @ keys[..., first:end]
        if documents is not None:
            numbers[:, self.position] = documents[:, 0]
            scores -= MASKED * (documents != numbers[:, first:end])[:, None, None]
        scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= np.add.reduce(scores, axis=-1, keepdims=True)
        return (scores @ values[:, :, first:end]).reshape(q.shape)

    def softcapped_log_softmax(self, logits: np.ndarray, softcap: float) -> np.ndarray:
        if softcap > UNSHIFTED_SOFTCAP:
            return self.ops.softcapped_log_softmax(logits, softcap)
        capped = softcap * np.tanh(logits / softcap)
        return capped - np.log(np.add.reduce(np.exp(capped), axis=-1, keepdims=True))

    def _hidden(self, x: np.ndarray, up: np.ndarray, negative_slope: float) -> np.ndarray:
        hidden = self.linear(x, up)
        # The slope is at most 1.
        hidden = np.maximum(hidden, negative_slope * hidden)
        return np.square(hidden, out=hidden)

    def _transposed(self, weight: np.ndarray) -> np.ndarray:
        # In the order in which OpenBLAS multiplies few rows fastest.
        return self.once(lambda: np.ascontiguousarray(weight.T), weight)

    def _product(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """x [..., in] times a weight [in, out], in one product for all rows."""
        return (x.reshape((-1, x.shape[-1])) @ weight).reshape((*x.shape[:-1], weight.shape[1]))
