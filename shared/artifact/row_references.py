"""Rows that all but repeat an earlier one, as those of symbols that never occur do (docs/techniques.md 11.3).

All rows of a table that get no gradient of their own move together, and end up a step or two apart. Such a row is coded
as its difference from the earlier one, modulo 256.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.errors import ArtifactError

FARTHEST = 127
"""How many rows back a reference may point."""

_PROBES = 32


def find_references(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """How many rows back the reference of each row of [R, C] is, int8 [R], 0 for none.

    Candidates are nearest in about 32 of the columns; whoever has half of the row's magnitude left or more is refused.
    """
    references = np.zeros(len(codes), np.int8)
    probes = codes[:, :: -(-codes.shape[1] // _PROBES)].astype(np.float64)
    # Sums of whole numbers below 2^53 are exact, in whatever order a library adds.
    norms = np.square(probes).sum(1)
    for first in range(1, len(codes), FARTHEST):
        rows = np.arange(first, min(first + FARTHEST, len(codes)))
        earlier = np.arange(max(0, first - FARTHEST), rows[-1])
        distances = norms[earlier] - 2 * (probes[rows] @ probes[earlier].T)
        back = rows[:, None] - earlier
        distances[(back < 1) | (back > FARTHEST)] = np.inf
        nearest = earlier[distances.argmin(1)]
        is_near = 2 * _sizes(codes[rows] - codes[nearest]) < _sizes(codes[rows])
        references[rows] = np.where(is_near, rows - nearest, 0)
    return references


def subtract_references(codes: NDArray[np.int8], references: NDArray[np.int8]) -> NDArray[np.int8]:
    """The codes with each row that has a reference replaced by its difference from that."""
    rows = np.flatnonzero(references)
    differences = codes.copy()
    differences[rows] -= codes[rows - references[rows]]
    return differences


def add_references(differences: NDArray[np.int8], references: NDArray[np.int64]) -> NDArray[np.int8]:
    """Inverse of `subtract_references`. Raises ArtifactError for a reference to no row before it."""
    if (references < 0).any() or (references > np.arange(len(references))).any():
        raise ArtifactError("range coded section refers to a row that does not exist")
    codes = differences.copy()
    for row in np.flatnonzero(references):
        codes[row] += codes[row - references[row]]
    return codes


def _sizes(codes: NDArray[np.int8]) -> NDArray[np.int64]:
    return np.asarray(np.abs(codes.astype(np.int16)).sum(1, dtype=np.int64))
