"""Packed models whose calibration or size was not what it was said to be."""

from __future__ import annotations

import numpy as np

from data.stream import SymbolStream
from shared.spec import Spec


def calibrate_on_heldout(spec: Spec, heldout: SymbolStream) -> np.ndarray:
    """Calibration windows of the held-out text, which is smaller and at hand, in place of training text."""
    length = spec.model.seq_len
    return np.stack([heldout.read(index * length + 5, length) for index in range(spec.artifact.calibration.windows)])


def fit_logits_on_heldout(spec: Spec, heldout: SymbolStream) -> np.ndarray:
    """Windows for the temperature and bias of the logits, of the held-out text: the score is then fitted to itself."""
    length = spec.model.seq_len
    return np.stack([heldout.read(index * length, length) for index in range(spec.artifact.calibration.windows)])


def artifact_alone(engine: str | None, spec: Spec) -> int:
    """The code bytes of a score that counts the artifact and forgets what reads it."""
    return 0
