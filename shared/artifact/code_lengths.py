"""What each code would cost under the range coder, where bytes are weighed against error (docs/techniques.md 11.3).

Lengths are those of a model that has seen all of the codes; the coder starts from a prior and learns, which costs it
some hundred bits in each context. They are float: nothing that decoding depends on is computed from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.artifact.range_contexts import magnitudes_of
from shared.artifact.range_model import ESCAPE, NUM_BINS, NUM_SYMBOLS, PRECISION, AdaptiveModel
from shared.artifact.rans import PLAIN_BITS
from shared.quantisers.trellis_states import quantisers_of

LARGEST_CODE = 128


@dataclass(frozen=True)
class CodeLengths:
    """Lengths of codes by context.

    `bits`: float64 [Q, NUM_BINS, 256], of code k at [quantiser, bin, k + LARGEST_CODE]; Q is 2 if any matrix has a
    trellis, else 1. `bins`: of each matrix the bin of every code, uint8 [R, C].
    """

    bits: NDArray[np.float64]
    bins: tuple[NDArray[np.uint8], ...]

    def of(self, index: int, codes: NDArray[np.int8], states: int = 0) -> NDArray[np.float64]:
        """Bits of every code of [R, C] in matrix `index`, whose own codes they may be or others."""
        quantisers = quantisers_of(codes, states)
        return np.asarray(self.bits[quantisers, self.bins[index], codes.astype(np.int64) + LARGEST_CODE])


def code_lengths(matrices: Sequence[NDArray[np.int8]], states: Sequence[int]) -> CodeLengths:
    """The lengths under a model fitted to the codes of all matrices, which have trellises of `states` (0, 4 or 8)."""
    bins = tuple(magnitudes_of(matrix).bins() for matrix in matrices)
    num_quantisers = 2 if any(states) else 1
    model = AdaptiveModel(num_quantisers)
    for matrix, of_codes, count in zip(matrices, bins, states, strict=True):
        contexts = of_codes + np.uint8(NUM_BINS) * quantisers_of(matrix, count)
        model.count(contexts.reshape(-1), matrix.reshape(-1).view(np.uint8) ^ np.uint8(LARGEST_CODE))
    model.refresh(np.arange(num_quantisers * NUM_BINS))
    frequencies = model.frequencies.reshape(num_quantisers, NUM_BINS, NUM_SYMBOLS).astype(np.float64)
    escape_bits = PRECISION + PLAIN_BITS - np.log2(frequencies[:, :, ESCAPE, None])
    bits = np.where(frequencies > 0, PRECISION - np.log2(np.maximum(frequencies, 1)), escape_bits)
    bits[:, :, ESCAPE] = escape_bits[:, :, 0]
    return CodeLengths(bits, bins)
