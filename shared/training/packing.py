"""Packs weights: quantised, and where the spec says so with logits fitted to what was packed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.stream import TrainingText
from shared.artifact import ArtifactInfo, quantise_model, write_tensors
from shared.artifact.calibration import LOGITS_KEY, Calibration, CalibrationRecord, training_record
from shared.artifact.logit_fit import Progress, ScorerOf, Tensors, with_logits
from shared.engine.protocol import Weights
from shared.spec import Spec
from shared.training.calibration import logit_windows
from shared.training.sources import open_training_text


@dataclass(frozen=True)
class LogitFit:
    """The windows [N, T] that logits were fitted on, the artifact's record of them, and the seconds that it took."""

    windows: np.ndarray
    record: CalibrationRecord
    seconds: float

    def extra(self) -> dict[str, object]:
        """What the header of the artifact says about it."""
        return {LOGITS_KEY: self.record.model_dump(exclude_none=True)}


def pack_weights(
    path: Path,
    spec: Spec,
    weights: Weights,
    calibration: Calibration | None,
    scorer_of: ScorerOf,
    *,
    extra: Mapping[str, Any] | None = None,
    text: TrainingText | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[ArtifactInfo, LogitFit | None]:
    """Write the artifact of weights, with what its header says of calibration and logits beside `extra`.

    `scorer_of` gives a scorer of weights and is called where logits are fitted, on `text` or else the training text
    that the spec names. Raises DataError where that is missing, and ArtifactError as `write_artifact`.
    """
    tensors = quantise_model(spec, weights, calibration.statistics if calibration else None)
    tensors, fit = fit_packed(spec, tensors, scorer_of, text, progress)
    parts = [extra or {}, *(made.extra() for made in (calibration, fit) if made is not None)]
    header = {key: value for part in parts for key, value in part.items()}
    return write_tensors(path, spec, tensors, header), fit


def fit_packed(
    spec: Spec,
    tensors: Tensors,
    scorer_of: ScorerOf,
    text: TrainingText | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Tensors, LogitFit | None]:
    """The tensors with logits fitted to them, and the fit; as they are, and None, where the spec has no logits."""
    if spec.artifact.logits == "none":
        return tensors, None
    begin = time.perf_counter()
    text = text or open_training_text(spec)
    windows = logit_windows(spec, text)
    tensors = with_logits(tensors, scorer_of, windows, progress)
    record = training_record(spec, windows, (text.name, text.sha256))
    return tensors, LogitFit(windows, record, time.perf_counter() - begin)
