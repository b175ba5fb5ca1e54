"""The bits of codes under the range coder, where bytes are weighed against error (docs/techniques.md 11.3, 12.5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.artifact.range_contexts import magnitudes_of
from shared.artifact.range_model import ESCAPE, NUM_SYMBOLS, prior_counts
from shared.ops import NumpyOps
from shared.quantisers.code_lengths import INCREMENT, NUM_BINS, UNSEEN, expected_bits
from shared.quantisers.trellis_states import quantisers_of


def range_bits(matrices: Sequence[NDArray[np.int8]], states: Sequence[int]) -> float:
    """Bits of the codes of matrices [R, C] with trellises of `states` (0, 4 or 8), under a model that has counted all
    of them; the coder counts as it goes, which costs it some hundred bits in each context."""
    counts = np.zeros((2 * NUM_BINS, NUM_SYMBOLS))
    for matrix, count in zip(matrices, states, strict=True):
        contexts = magnitudes_of(matrix).bins() + np.uint8(NUM_BINS) * quantisers_of(matrix, count)
        symbols = matrix.astype(np.int64) + NUM_SYMBOLS // 2
        found = contexts.astype(np.int64) * NUM_SYMBOLS + symbols
        counts += np.bincount(found.reshape(-1), minlength=counts.size).reshape(counts.shape)
    start = prior_counts() / INCREMENT
    start[:, ESCAPE] = 0.0
    return float(expected_bits(NumpyOps(), counts, np.tile(start, (2, 1)) + UNSEEN))
