"""The scale that a row of weights has in the artifact: of what packing stores, and of what training rounds to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The step of float16 below its normal range, which begins at 2^-14. A power of two: exact in every dtype.
SUBNORMAL_STEP = 2.0**-24


def code_scale(largest: NDArray[np.float32], limit: int) -> NDArray[np.float16]:
    """Scale of rows whose largest magnitudes are given, for codes up to `limit`, at most 127; infinite on overflow.

    largest / limit in float16, 0 for a row of zeros. Where float16 has too few digits left (below its normal range) it
    is rounded up, so that the largest weight of a row is never more than half a step beyond the last code.
    """
    with np.errstate(over="ignore"):
        scales = (largest / np.float32(limit)).astype(np.float16)
        short = largest > scales.astype(np.float32) * np.float32(limit + 0.5)
    return np.where(short, scales + np.float16(SUBNORMAL_STEP), scales)
