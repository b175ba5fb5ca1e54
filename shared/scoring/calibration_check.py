"""Checks that a model was not calibrated on the text that it is scored on (docs/techniques.md 11.9)."""

from __future__ import annotations

import math

import numpy as np

from data.stream import SymbolStream
from shared.artifact.calibration import CalibrationRecord, symbols_hash
from shared.scoring.checks import Check
from shared.scoring.overlap import FEWEST_RUN_SYMBOLS, TOO_SHORT, runs_found
from shared.tolerances import CALIBRATION_OVERLAP_FRAC

NAME = "calibration"


def check_calibration(
    record: CalibrationRecord | None, heldout: SymbolStream, windows: np.ndarray | None = None, name: str = NAME
) -> Check:
    """Check the calibration of a packed model whose storage needs one, or, by that name, the fit of its logits.

    `record` is what the artifact says of it, None if nothing. `windows` [N, T] are its symbols where they are known, as
    they are after training, or can be taken from the training text again; without them the record has to be believed.
    The check fails if the record names held-out text, is not of these windows, or these occur in the held-out text,
    which windows of fewer than 32 symbols do by chance.
    """
    limit = CALIBRATION_OVERLAP_FRAC
    if record is None:
        return Check(name, False, 1.0, limit, "the artifact does not say on what text")
    if record.text_sha256 == heldout.sha256 or (record.text or "").split("/")[-1].startswith("heldout"):
        return Check(name, False, 1.0, limit, f"{record}: held-out text")
    if windows is None:
        return Check(name, True, 0.0, limit, f"{record}, as the artifact says")
    if symbols_hash(windows) != record.symbols_hash:
        return Check(name, False, 1.0, limit, f"{record}: its symbols are not those of this text")
    if windows.shape[1] < FEWEST_RUN_SYMBOLS:
        return Check(name, True, math.nan, limit, f"{record}; {TOO_SHORT}", warning=True)
    share = float(np.mean(runs_found(windows, heldout)))
    detail = f"{record}; {share:.2%} of its runs of symbols occur in {heldout.name}"
    return Check(name, share <= limit, share, limit, detail, warning=0 < limit / 2 < share <= limit)
