"""Calibration: the statistics that a model's quantisers need, from text that is not held out (docs/techniques.md 11.9).

The work of a rank is its share of the windows: it writes them, if the model writes its own text, runs the forward pass
over them, and adds up their statistics. The sums of all ranks are then added on each of them in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from shared.artifact.curvature import Gradients, curved_tensors, loss_curvature
from shared.artifact.quantise import storage_of
from shared.artifact.sampling import Progress, Writer
from shared.artifact.statistics import input_statistics
from shared.engine.ranks import OneRank, Ranks
from shared.model import parameter_manifest
from shared.ops import Ops
from shared.quantisers import Curvature, InputStatistics
from shared.spec import Spec

CALIBRATION_KEY = "calibration"
"""The key in the free part of an artifact's header under which it says what it was calibrated on."""

LOGITS_KEY = "logits"
"""The same for the temperature and bias of its logits."""

Symbols = NDArray[np.int32]
Statistics = dict[str, InputStatistics]


class CalibrationRecord(BaseModel):
    """What an artifact was calibrated on. `text` and `text_sha256` name a text that the windows were taken from;
    `symbols_hash` is the start of the SHA-256 of all windows, int32 in a row."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: Literal["self_generated", "train"]
    windows: Annotated[int, Field(gt=0)]
    window_symbols: Annotated[int, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)]
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    text: str | None = None
    text_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    symbols_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]

    def __str__(self) -> str:
        size = f"{self.windows} windows of {self.window_symbols} symbols"
        if self.source == "self_generated":
            return f"{size}, written by the model itself at temperature {self.temperature:g}, seed {self.seed}"
        return f"{size} of {self.text}, seed {self.seed}"


@dataclass(frozen=True)
class Calibration:
    """Statistics by parameter name, the windows [N, T] that they are of, and the record of them for the artifact."""

    statistics: Statistics
    windows: Symbols
    record: CalibrationRecord

    def extra(self) -> dict[str, object]:
        """What the header of the artifact says about it."""
        return {CALIBRATION_KEY: self.record.model_dump(exclude_none=True)}


def needs_statistics(spec: Spec) -> bool:
    """Whether the artifact of a spec stores a tensor by a method that needs statistics of its inputs."""
    return any(storage_of(parameter, spec.artifact).needs_statistics for parameter in parameter_manifest(spec))


def window_length(spec: Spec) -> int:
    """Symbols of a window of calibration text: whole patches, one at least."""
    most, size = min(spec.artifact.calibration.window_symbols, spec.model.seq_len), spec.model.patch_size
    return max(size, most // size * size)


def symbols_hash(windows: Symbols) -> str:
    """The hash that a record keeps of its windows."""
    return hashlib.sha256(np.ascontiguousarray(windows, "<i4").tobytes()).hexdigest()[:16]


def training_record(spec: Spec, windows: Symbols, text: tuple[str, str]) -> CalibrationRecord:
    """The record of windows of a training text, (name, SHA-256), whatever the source of the calibration is."""
    settings = spec.artifact.calibration.model_copy(update={"source": "train"})
    artifact = spec.artifact.model_copy(update={"calibration": settings})
    return make_record(spec.model_copy(update={"artifact": artifact}), windows, text)


def make_record(spec: Spec, windows: Symbols, text: tuple[str, str] | None = None) -> CalibrationRecord:
    """The record of windows that were made by the settings of a spec; `text` is (name, SHA-256) of where they are
    from."""
    settings = spec.artifact.calibration
    assert settings.source != "none"
    return CalibrationRecord(
        source=settings.source,
        windows=windows.shape[0],
        window_symbols=windows.shape[1],
        seed=settings.seed,
        temperature=settings.temperature if settings.source == "self_generated" else None,
        text=text[0] if text else None,
        text_sha256=text[1] if text else None,
        symbols_hash=symbols_hash(windows),
    )


def calibrate(
    ops: Ops,
    spec: Spec,
    weights: Mapping[str, NDArray[np.float32]],
    windows: Symbols | None = None,
    ranks: Ranks | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Symbols, Statistics]:
    """All windows of calibration text and the statistics over them: given windows, or such as the model writes.

    Called by every rank with the same arguments, and the same on each of them afterwards. `progress` gets the symbols
    of this rank that are done, and all of them, where writing a symbol and measuring it count as one each.
    """
    ranks, settings, length = ranks or OneRank(), spec.artifact.calibration, window_length(spec)
    count = settings.windows if windows is None else len(windows)
    share = -(-count // ranks.world_size)
    mine = range(min(share * ranks.rank, count), min(share * (ranks.rank + 1), count))
    written = 0
    if windows is not None:
        own = windows[mine.start : mine.stop]
    elif not mine:
        own = np.zeros((0, length), np.int32)
    else:
        writer = Writer(ops, spec, weights, settings.temperature)
        own = writer.write(mine, length, settings.seed, lambda done, total: progress(done, 2 * total))
        written = own.size
    rows = max(1, spec.evaluation.batch_symbols // length)
    # A rank without windows measures one of zeros and adds it zero times, because it takes part in every sum.
    measured = own if mine else np.zeros((1, length), np.int32)

    def batches() -> Iterator[Symbols]:
        for start in range(0, len(measured), rows):
            yield measured[start : start + rows]
            progress(written + min(start + rows, len(measured)) * length, written + measured.size)

    statistics = input_statistics(ops, spec, weights, batches())
    if ranks.world_size == 1:
        return own, statistics
    padded = np.zeros((share, length), np.int32)
    padded[: len(own)] = own
    return np.concatenate(ranks.gather(padded))[:count], _summed(statistics, ranks, times=1 if mine else 0)


def with_curvature(
    statistics: Statistics, gradients: Gradients, spec: Spec, windows: Symbols, ranks: Ranks
) -> Statistics:
    """The statistics with the curvature of the loss over the windows [N, T], of which each rank measures its share, of
    the tensors that need it."""
    share = -(-len(windows) // ranks.world_size)
    mine = windows[share * ranks.rank : share * (ranks.rank + 1)]
    # A rank without windows takes part in the sums with weight zero.
    batches = (x[None] for x in (mine if len(mine) else windows[:1]))
    found = loss_curvature(gradients, curved_tensors(spec), batches)
    return {
        name: replace(each, curvature=_mean_curvature(found[name], ranks, len(mine), len(windows)))
        if name in found
        else each
        for name, each in statistics.items()
    }


def _mean_curvature(own: Curvature, ranks: Ranks, windows: int, total: int) -> Curvature:
    """The mean over the windows of all ranks, of which `own` is over this one's."""
    if ranks.world_size == 1:
        return own
    return Curvature(*(_total(side * (windows / total), ranks) for side in (own.inputs, own.outputs)))


def _summed(statistics: Statistics, ranks: Ranks, times: int) -> Statistics:
    """The sums of the statistics of all ranks, those of this one counted `times` times; parameter by parameter, so that
    no rank holds all of the others at once."""

    def total(value: NDArray) -> NDArray:
        return _total(times * value, ranks)

    summed = {}
    for name, each in statistics.items():
        rows = int(total(np.array([each.rows], np.int64))[0])
        gram = total(each.gram) if each.gram is not None else None
        summed[name] = InputStatistics(rows, gram, total(each.reads) if each.reads is not None else None)
    return summed


def _total(value: NDArray, ranks: Ranks) -> NDArray:
    """The sum over ranks of an array of 64-bit numbers."""
    # As integers of the same width, because not every framework carries float64.
    parts = ranks.gather(np.ascontiguousarray(value).view(np.int64))
    return np.asarray(np.sum([part.view(value.dtype) for part in parts], axis=0))
