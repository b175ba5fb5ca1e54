"""Steps of one symbol without state: each one computes the whole window again. Any scorer can step this way."""

from __future__ import annotations

import numpy as np

from shared.engine.protocol import Scorer
from shared.spec import Spec

_SHORTEST_WINDOW = 32


class WindowStepper:
    """shared.engine.protocol.Stepper of any scorer, by `Scorer.log_probs` of the window so far.

    Behind the last symbol is padding, which a causal model cannot see. Window lengths come from a short list, so that a
    compiled engine compiles a few times and not once per symbol. They are windows that compute the scored function.
    """

    def __init__(self, scorer: Scorer, rows: int) -> None:
        self.scorer, self.rows = scorer, rows
        self._symbols = np.zeros((rows, scorer.spec.model.seq_len), np.int32)
        self._length = 0

    def start(self, x: np.ndarray) -> np.ndarray:
        self._length = 0
        return self._append(x)

    def advance(self, symbols: np.ndarray) -> np.ndarray:
        return self._append(symbols[:, None])

    def _append(self, x: np.ndarray) -> np.ndarray:
        last = self._length + x.shape[1]
        assert x.shape[0] == self.rows and last < self._symbols.shape[1], f"{x.shape} after {self._length}"
        self._symbols[:, self._length : last], self._symbols[:, last:] = x, 0
        self._length = last
        window = self._symbols[:, : window_symbols(self.scorer.spec, last + 1)]
        return self.scorer.log_probs(window)[:, last]


def window_symbols(spec: Spec, needed: int) -> int:
    """The shortest window that is computed for at least `needed` symbols: patch_size times a power of two, or seq_len.

    Only seq_len where the angles of RoPE depend on the length of the window, so that the function is the scored one.
    """
    if 0 < spec.model.attention.ntk_positions < spec.model.num_patches:
        return spec.model.seq_len
    length = spec.model.patch_size
    while length < max(needed, _SHORTEST_WINDOW):
        length *= 2
    return min(length, spec.model.seq_len)
