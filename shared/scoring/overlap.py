"""Checks for overlap of texts: of held-out text with training text, and of selection text with scored text.

Held-out text is compared by sketches (`data.sketch`): whole documents, white space and case folded, and windows of
64 bytes. Windows of selection text are compared symbol by symbol (docs/techniques.md 1.4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from data.sketch import WINDOW_BYTES, Sketch, known, run_hashes
from data.stream import SymbolStream, TrainingText
from shared import tolerances
from shared.errors import DataError
from shared.scoring.checks import Check

NAME = "overlap"
RUN_SYMBOLS = 64
# Of honest texts (built-in, digital.gov, Wikipedia against OpenWebText) 37 to 58 % of the runs of 8 bytes occur in the
# other, 4 to 5 % of those of 16, 0 to 1.5 % of those of 32.
FEWEST_RUN_SYMBOLS = 32
TOO_SHORT = f"not compared: windows of fewer than {FEWEST_RUN_SYMBOLS} symbols occur in any text"
CHUNK_SYMBOLS = 1 << 20
# A document with fewer sampled windows is found as a whole only.
NEAR_WINDOWS = 8


@dataclass(frozen=True)
class Overlap:
    """The part of a text that occurs in another. `copied` of its `documents` do, `whole` of them unchanged and the
    others except for a few words; shares are of 1. `windows` were compared."""

    documents: int
    whole: int
    copied: int
    copied_frac: float
    windows: int
    windows_frac: float

    @property
    def missed(self) -> float:
        """The probability that none of the sampled windows lies in a certain 1 % of the text."""
        return 0.99**self.windows


def measure_overlap(text: Sketch, other: Sketch) -> Overlap:
    """Measure how much of a text occurs in another one.

    A document is copied if it occurs whole, or if nearly all of its windows do, where enough of them are sampled.
    `copied_frac` is the larger of two shares: of documents of a window's length, and of bytes. Of the documents that
    do not occur whole it takes those with enough windows for all.
    """
    level = max(text.level, other.level)
    text, other = text.at_level(level), other.at_level(level)
    whole = known(text.documents, other.documents)
    windows = np.unique(text.windows)
    there = windows[known(windows, other.windows)]
    found = np.bincount(text.owners[np.isin(text.windows, there)], minlength=len(whole))
    judged = text.counts >= NEAR_WINDOWS
    near = judged & ~whole & (found >= tolerances.OVERLAP_NEAR_FRAC * text.counts)
    weights = (text.num_bytes >= WINDOW_BYTES), text.num_bytes.astype(np.float64)
    shares = [_share(whole * weight, weight) + _share(near * weight, judged * weight) for weight in weights]
    num_whole, num_near = int(whole.sum()), int(near.sum())
    windows_frac = _share(len(there), len(windows))
    return Overlap(len(whole), num_whole, num_whole + num_near, min(1.0, max(shares)), len(windows), windows_frac)


def check_overlap(heldout: TrainingText, training: TrainingText) -> Check:
    """Check that held-out text is not in the training text. All of it is compared even if only a sample is scored: a
    contaminated text is not cleaner in a sample, only harder to see through."""
    try:
        overlap = measure_overlap(heldout.sketch(), training.sketch())
    except DataError as error:
        return overlap_unknown(str(error))
    documents, windows = tolerances.OVERLAP_DOCUMENTS_FRAC, tolerances.OVERLAP_WINDOWS_FRAC
    detail = (
        f"{overlap.copied:,} of {overlap.documents:,} documents of {heldout.name} occur in {training.name} "
        f"({overlap.whole:,} whole but for white space and case), {overlap.copied_frac:.2%} of the text, and "
        f"{overlap.windows_frac:.2%} of {overlap.windows:,} windows; if 1% were copied, no window would show it with "
        f"probability {max(overlap.missed, 1e-30):.0e}"
    )
    by_windows = overlap.windows_frac / windows > overlap.copied_frac / documents
    measured, limit = (overlap.windows_frac, windows) if by_windows else (overlap.copied_frac, documents)
    return Check(NAME, measured <= limit, measured, limit, detail, warning=overlap.copied > 0)


def overlap_unknown(reason: str) -> Check:
    """The check where the training text cannot be compared with the scored text: no failure, and no proof either."""
    return Check(NAME, True, math.nan, tolerances.OVERLAP_DOCUMENTS_FRAC, f"not measured: {reason}", warning=True)


def check_selection(windows: np.ndarray, scored: SymbolStream) -> Check:
    """Check that the selection windows [N, T] int32 do not occur in the scored text, whose score a choice by them
    would flatter. A window counts as found if its first 64 symbols occur (all, rounded down to a power of two, where it
    is shorter). Windows of fewer than 32 are not compared."""
    if windows.shape[1] < FEWEST_RUN_SYMBOLS:
        return Check("selection", True, math.nan, tolerances.SELECTION_OVERLAP_FRAC, TOO_SHORT, warning=True)
    found = runs_found(windows[:, :RUN_SYMBOLS], scored)
    share, limit = float(found.mean()), tolerances.SELECTION_OVERLAP_FRAC
    detail = f"{int(found.sum())} of the {len(found)} windows of the selection text occur in {scored.name}"
    return Check("selection", share <= limit, share, limit, detail, warning=share > 0)


def runs_found(windows: np.ndarray, text: SymbolStream) -> np.ndarray:
    """Whether the runs of 64 symbols that windows [N, T] are cut into occur anywhere in a text, bool [runs]. Of shorter
    windows a run is the first symbols, their number rounded down to a power of two."""
    length = min(RUN_SYMBOLS, 1 << (windows.shape[1].bit_length() - 1))
    whole = windows[:, : windows.shape[1] // length * length].reshape(-1, length)
    anchors = np.concatenate([run_hashes(run, length) for run in whole])
    found = np.zeros(len(anchors), bool)
    for start in range(0, text.num_symbols, CHUNK_SYMBOLS):
        count = min(CHUNK_SYMBOLS + length - 1, text.num_symbols - start)
        found |= np.isin(anchors, run_hashes(text.read(start, count), length))
    return found


def _share(part: np.ndarray | int, whole: np.ndarray | int) -> float:
    """The sum of a part in the sum of the whole; 0 of nothing."""
    total = float(np.sum(whole))
    return float(np.sum(part)) / total if total else 0.0
