"""Steps of the NumPy oracle in few calls of NumPy: for one position a call costs more than what it computes.

Each operation is the one that shared.ops.protocol defines; sums are taken in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared.ops.stepping_ops import SteppingOps


class NumpySteppingOps(SteppingOps):
    """SteppingOps over NumpyOps. Weights must stay as they are for as long as it lives."""

    def __init__(self, ops: Any, positions: int, unknown: int) -> None:
        super().__init__(ops, positions, unknown)
        # What is made of weights once, by their identities; with the weights, so that no other array takes these.
        self._made: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        # A view is made anew in each pass.
        return self._product(x, weight.T if weight.base is not None else self._once(lambda: weight.T, weight))

    def rms_norm(self, x: np.ndarray, eps: float) -> np.ndarray:
        return x / np.sqrt(np.vecdot(x, x) / x.shape[-1] + eps)[..., None]

    def gained_linear(self, x: np.ndarray, weight: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return self._product(x, self._once(lambda: (gain[:, None] * weight).T, gain, weight))

    def leaky_relu_squared_mlp(
        self, x: np.ndarray, up: np.ndarray, down: np.ndarray, negative_slope: float
    ) -> np.ndarray:
        return self.linear(self._hidden(x, up, negative_slope), down)

    def gained_mlp(
        self, x: np.ndarray, up: np.ndarray, down: np.ndarray, negative_slope: float, gain: np.ndarray
    ) -> np.ndarray:
        return self.gained_linear(self._hidden(x, up, negative_slope), down, gain)

    def residual_norm(
        self, x: np.ndarray, added: np.ndarray | None, first: np.ndarray | None, mix: np.ndarray | None, eps: float
    ) -> tuple[np.ndarray, np.ndarray]:
        total = x if added is None else x + added
        if mix is not None:
            total = mix[0] * total + mix[1] * first
        return total, self.rms_norm(total, eps)

    def attention_inputs(
        self,
        x: np.ndarray,
        weights: Sequence[np.ndarray],
        gain: np.ndarray,
        rope_dims: int,
        rope_base: float,
        eps: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        batch, time, _ = x.shape
        heads, width = len(gain), len(weights[0]) // len(gain)
        groups = len(weights[1]) // width
        joined = self._once(lambda: np.concatenate(weights).T, *weights)
        heads_of_all = self._product(x, joined).reshape((batch, time, heads + 2 * groups, width))
        qk = self.rms_norm(heads_of_all[:, :, : heads + groups], eps)
        if rope_dims:
            qk = self._rotated(qk, rope_dims, rope_base)
        return qk[:, :, :heads] * gain[:, None], qk[:, :, heads:], heads_of_all[:, :, heads + groups :]

    def lookback(self, x: np.ndarray, first: np.ndarray, count: int) -> np.ndarray:
        if self.position == 0:
            entries = np.concatenate([*[first] * (count - 1), x], axis=1)
            windows = np.lib.stride_tricks.sliding_window_view(entries, count, axis=1)[..., ::-1]
            joined = windows.swapaxes(-1, -2).reshape((*x.shape[:2], -1))
            self._keep(joined[:, -1:])
            return joined
        joined = np.concatenate([x, self._state()[..., : -x.shape[-1]]], axis=-1)
        self._keep(joined)
        return joined

    def _hidden(self, x: np.ndarray, up: np.ndarray, negative_slope: float) -> np.ndarray:
        hidden = self.linear(x, up)
        # The slope is at most 1.
        hidden = np.maximum(hidden, negative_slope * hidden)
        return np.square(hidden, out=hidden)

    def _product(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """x [..., in] times a weight [in, out], in one product for all rows."""
        return (x.reshape((-1, x.shape[-1])) @ weight).reshape((*x.shape[:-1], weight.shape[1]))

    def _once(self, make: Callable[[], np.ndarray], *weights: np.ndarray) -> np.ndarray:
        key = tuple(map(id, weights))
        if key not in self._made:
            # In the order in which OpenBLAS reads few rows fastest.
            self._made[key] = (np.ascontiguousarray(make()), weights)
        return self._made[key][0]
