"""The entropy of a histogram of codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def entropy_of_shares(shares: NDArray[np.float64]) -> float:
    """Bits per code of an ideal coder without context, of the share of each code; those that do not occur have 0."""
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum()) + 0.0
