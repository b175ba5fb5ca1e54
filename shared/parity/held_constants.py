"""The oracle for finite differences: what derivatives take for a constant stays as it was at the first evaluation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shared.ops import NumpyOps


class HeldConstants(NumpyOps):
    """NumpyOps that remembers the results of the operations that have no derivative, and the slopes of relu, in the
    order of their calls.

    The first evaluation of a function runs them; after `replay` the next one gets the same, at other weights too.
    """

    def __init__(self) -> None:
        self._values: list[np.ndarray] = []
        self._next: int | None = None

    def replay(self) -> None:
        """The next evaluation starts from the first constant."""
        self._next = 0

    def row_noise(self, x: np.ndarray, counter: np.ndarray, salt: int) -> np.ndarray:
        return self._held(lambda: super(HeldConstants, self).row_noise(x, counter, salt))

    def stop_gradient(self, x: np.ndarray) -> np.ndarray:
        return self._held(lambda: x)

    def relu(self, x: np.ndarray) -> np.ndarray:
        # Its slope: a unit that crosses zero between the two ends of a difference has none there.
        return x * self._held(lambda: (x > 0).astype(x.dtype))

    def _held(self, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if self._next is None:
            self._values.append(compute())
            return self._values[-1]
        self._next += 1
        return self._values[self._next - 1]
