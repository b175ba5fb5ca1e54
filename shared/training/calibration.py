"""Calibrates a model before it is packed: after training on all ranks, or in a command on one engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from data.stream import TrainingText
from shared.artifact.calibration import (
    Calibration,
    Statistics,
    calibrate,
    make_record,
    needs_statistics,
    window_length,
    with_curvature,
)
from shared.artifact.curvature import needs_curvature
from shared.engine.leader import LeadingEngine, Task, packed_symbols
from shared.engine.package import create_engine, engine_package, make_ops
from shared.engine.protocol import Engine, Weights
from shared.engine.ranks import OneRank, Ranks
from shared.errors import DataError, UserError
from shared.model import model_weights
from shared.scoring.checks import Check
from shared.spec import Spec
from shared.spec.reduced import with_training
from shared.training.sources import open_training_text

CALIBRATE = "calibrate"
# The key of the windows for logits beside the seed.
_LOGITS_STREAM = 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TimedCalibration:
    """A calibration, and the seconds that it took."""

    calibration: Calibration
    seconds: float


def calibration_windows(spec: Spec, text: TrainingText) -> np.ndarray:
    """Windows of the training text at random positions: int32 [windows, symbols]. Raises DataError for a shorter text.

    A function of the text and the settings alone, so that an audit can take them again.
    """
    settings = spec.artifact.calibration
    return _random_windows(text, settings.windows, window_length(spec), settings.seed)


def logit_windows(spec: Spec, text: TrainingText) -> np.ndarray:
    """As `calibration_windows`, but whole windows of the model, for its logits, at other positions: codes may fit the
    text that they were rounded for better than any other."""
    settings = spec.artifact.calibration
    return _random_windows(text, settings.windows, spec.model.seq_len, [settings.seed, _LOGITS_STREAM])


def _random_windows(text: TrainingText, count: int, length: int, key: int | list[int]) -> np.ndarray:
    places = text.num_symbols - length + 1
    if places < 1:
        raise DataError(f"{text.name}: {text.num_symbols} symbols are fewer than one calibration window of {length}")
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.stack([text.read(int(start), length) for start in bits % np.uint64(places)])


def calibrate_weights(
    engine: str, spec: Spec, weights: Weights, progress: Progress = lambda done, total: None
) -> Calibration | None:
    """The calibration of weights on the named engine or `numpy`; None where no tensor needs one.

    Raises DataError where the spec asks for training text and it is missing.
    """
    return make_calibration(engine, spec, weights, progress) if is_calibrated(spec) else None


def make_calibration(
    engine: str, spec: Spec, weights: Weights, progress: Progress = lambda done, total: None
) -> Calibration:
    """The calibration of weights, whether or not a tensor needs one. Raises as `calibrate_weights`, and UserError where
    a tensor needs gradients and the engine is `numpy`."""
    if engine == "numpy" and needs_curvature(spec):
        raise UserError(
            "artifact rounding two_sided needs gradients, which the engine numpy has not: use --engine mlx or torch"
        )
    text = open_training_text(spec) if spec.artifact.calibration.source == "train" else None
    windows = None if text is None else calibration_windows(spec, text)
    made, statistics = calibrate(make_ops(engine), spec, weights, windows, progress=progress)
    return _made(spec, text, made, _with_curvature(engine, spec, weights, made, statistics, OneRank()))


def calibrate_engine(engine: Engine, text: TrainingText, progress: Progress) -> TimedCalibration:
    """The calibration of the averaged weights of an engine, each rank taking its share.

    `text` is the training text, which is read only if the spec asks for it.
    """
    spec = engine.spec
    begin = time.perf_counter()
    source = text if spec.artifact.calibration.source == "train" else None
    arrays = {} if source is None else {"x": packed_symbols(calibration_windows(spec, source))}
    if engine.ranks.world_size > 1:
        # Followers are in collectives from here on, so nothing may stop rank 0 between two of them.
        engine = cast(LeadingEngine, engine).together(CALIBRATE, arrays)
        found = _calibrate_share(engine, arrays, lambda done, total: None)
    else:
        found = _calibrate_share(engine, arrays, progress)
    return TimedCalibration(_made(spec, source, *found), time.perf_counter() - begin)


def is_calibrated(spec: Spec) -> bool:
    """Whether packing a model of this spec begins with a calibration."""
    return spec.artifact.calibration.source != "none" and needs_statistics(spec)


def calibrates_in_time(spec: Spec) -> bool:
    """Whether the calibration counts against a time limit: training text is not read for nothing."""
    timed = spec.schedule.driver == "time"
    return timed and spec.artifact.calibration.source == "train" and is_calibrated(spec)


def check_calibration_time(spec: Spec, seconds: float) -> Check:
    """Calibration on training text is training (docs/techniques.md 1.1): it must take no longer than the part of the
    time limit that was kept for it."""
    reserve_s = spec.training.reserve_s
    detail = f"{seconds:.1f} s on training text, of {reserve_s:g} s that training.reserve_s keeps for it"
    return Check("calibration_time", seconds <= reserve_s, seconds, reserve_s, detail)


def _calibrate_share(engine: Engine, arrays: Weights, progress: Progress) -> tuple[np.ndarray, dict]:
    windows = arrays["x"].astype(np.int32) if "x" in arrays else None
    ops, weights = engine_package(engine.name).make_ops(), engine.export_weights("averaged")
    made, statistics = calibrate(ops, engine.spec, weights, windows, engine.ranks, progress)
    return made, _with_curvature(engine.name, engine.spec, weights, made, statistics, engine.ranks)


def _with_curvature(
    name: str, spec: Spec, weights: Weights, windows: np.ndarray, statistics: Statistics, ranks: Ranks
) -> Statistics:
    """The statistics with the curvature of the loss where a tensor needs it, which an engine of its own measures: the
    one in training holds other weights than their average."""
    if not needs_curvature(spec):
        return statistics
    engine = create_engine(name, _of_nats(spec))
    engine.initialise(model_weights(spec, weights))
    return with_curvature(statistics, engine.gradients, spec, windows, ranks)


def _of_nats(spec: Spec) -> Spec:
    """The spec whose loss is the plain nats of the weights as they are, and of which nothing is frozen: that is what a
    score of the packed model is, whatever was trained for."""
    qat = {**spec.training.qat.model_dump(mode="json"), "form": "off"}
    return with_training(spec, loss={}, qat=qat, freeze="none", parameters=["*"])


def _made(spec: Spec, text: TrainingText | None, windows: np.ndarray, statistics: dict) -> Calibration:
    named = None if text is None else (text.name, text.sha256)
    return Calibration(statistics, windows, make_record(spec, windows, named))


TASKS: dict[str, Task] = {CALIBRATE: lambda engine, arrays: _calibrate_share(engine, arrays, lambda done, total: None)}
"""What rank 0 asks of the others beside the calls of an engine."""
