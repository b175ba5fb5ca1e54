"""Does one text occur in another? By hashes of runs of 64 symbols (FEATURES 1.3, test 7)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared import tolerances
from shared.scoring.checks import Check
from shared.scoring.stream import SymbolStream

RUN_SYMBOLS = 64
CHUNK_SYMBOLS = 1 << 20
# Odd, so that no power of it loses bits modulo 2^64.
MULTIPLIER = 0x9E3779B97F4A7C15

UInt64 = npt.NDArray[np.uint64]


def run_hashes(symbols: np.ndarray, length: int) -> UInt64:
    """A hash of symbols[i : i + length] for every i: uint64 [T - length + 1] of int32 [T], `length` a power of two.

    The polynomial sum of (symbol + 1) * M^(length - 1 - k) modulo 2^64, by doubling the length.
    """
    assert length > 0 and length & (length - 1) == 0
    hashes = (symbols.astype(np.uint64) + np.uint64(1)) * np.array([MULTIPLIER], np.uint64)
    size = 1
    while size < length:
        power = np.array([pow(MULTIPLIER, size, 1 << 64)], np.uint64)
        hashes = hashes[: len(hashes) - size] * power + hashes[size:] if len(hashes) > size else hashes[:0]
        size *= 2
    return hashes


def check_selection(windows: np.ndarray, scored: SymbolStream) -> Check:
    """What was chosen by some text says nothing about that text: windows to choose by, [N, T] int32, may not occur
    in the scored one. A window counts as found if its first 64 symbols are there (all, rounded down to a power
    of two, where it is shorter)."""
    length = min(RUN_SYMBOLS, 1 << (windows.shape[1].bit_length() - 1))
    anchors = np.concatenate([run_hashes(window[:length], length) for window in windows])
    found = np.zeros(len(anchors), bool)
    for start in range(0, scored.num_symbols, CHUNK_SYMBOLS):
        count = min(CHUNK_SYMBOLS + length - 1, scored.num_symbols - start)
        found |= np.isin(anchors, run_hashes(scored.read(start, count), length))
    share, limit = float(found.mean()), tolerances.SELECTION_OVERLAP_FRAC
    detail = f"{int(found.sum())} of the {len(found)} windows that were chosen by occur in {scored.name}"
    return Check("selection", share <= limit, share, limit, detail, warning=share > 0)
