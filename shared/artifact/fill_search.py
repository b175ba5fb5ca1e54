"""The whole search for the best artifact of a size: sensitivities, curves, a choice, and a second look at what matters
(docs/techniques.md 12.5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.artifact.curves import decoded
from shared.artifact.fill import Filled, Filler
from shared.artifact.fill_model import Model
from shared.artifact.sensitivity import Divergence, Sensitivity, measure_sensitivities
from shared.model.manifest import parameter_manifest
from shared.quantisers import InputStatistics
from shared.spec import QuantiserSpec, Spec

SECOND_LOOK_FRAC = 0.95
"""The tensors with the most predicted loss, this share of it in all, are measured again as they were chosen."""

MOST_LOOKS, CLOSE_FRAC = 3, 0.15
"""So often, unless less than this share of the cost of the whole is missing in the sum over tensors."""

PROBING_FRAC = 0.4
"""The share of the time that measuring sensitivities may take. Where it would take more, fewer windows are read."""

Progress = Callable[[int, int, str], None]
"""Gets (done, total, what is done)."""


@dataclass(frozen=True)
class Search:
    """What was found: the choice, the sensitivities it was made by, and the cost of the whole, in nats per symbol, as
    measured on `symbols` of the calibration text, which is what is predicted for other text."""

    filled: Filled
    sensitivities: dict[str, Sensitivity]
    together_nats: float
    symbols: int
    encodings: int


def methods_of(spec: Spec, statistics: Mapping[str, InputStatistics], keep: bool) -> dict[str, list[QuantiserSpec]]:
    """The methods that each quantised tensor may be stored by: that of the spec and, unless it is to be kept, uniform.
    Errors are always fed back, because the statistics for it are there. Of a method with a low-rank correction there is
    one without."""
    found = {}
    for parameter in parameter_manifest(spec):
        if parameter.quantisation == "control" or len(parameter.shape) < 2:
            continue
        own = spec.artifact.settings_of(parameter.name, parameter.quantisation)
        # Steps are chosen here, in deviations of the tensor: the loss is what is searched by.
        own = QuantiserSpec(**{name: getattr(own, name) for name in QuantiserSpec.model_fields} | {"step_unit": "rms"})
        if own.rounding == "nearest":
            own = own.model_copy(update={"rounding": "gptq"})
        choices = [own] if not own.lqer_rank else [own.model_copy(update={"lqer_rank": 0}), own]
        if not keep and own.method != "uniform":
            curved = statistics[parameter.name].curvature is not None
            choices.append(QuantiserSpec(method="uniform", rounding="two_sided" if curved else "gptq"))
        found[parameter.name] = choices
    return found


def search(
    model: Model,
    divergence: Divergence,
    limit_bytes: int,
    extra: Mapping[str, object] | None = None,
    seconds: float = 600.0,
    progress: Progress = lambda done, total, what: None,
) -> Search:
    """The least predicted loss whose artifact has at most `limit_bytes`, in about so many seconds.

    Raises DoesNotFitError if the smallest artifact has more.
    """
    begin = time.monotonic()
    names = list(model.methods)
    curves = {}
    for done, name in enumerate(names):
        progress(done, len(names), "measuring bits and errors")
        curves[name] = model.curves(name)
    divergence = _affordable(divergence, len(names), PROBING_FRAC * seconds)
    probes: dict[str, NDArray[np.float32]] = {}
    for name in names:
        curve = curves[name][-1]
        probes[name] = decoded(model.stored(name, curve.settings(float(curve.values[len(curve.values) // 2]))).tensor)
    sensitivities = measure_sensitivities(
        divergence, probes, model.statistics, lambda done, total: progress(done, total, "measuring sensitivities")
    )
    filler = Filler(model, curves, limit_bytes, extra, lambda size: progress(0, 0, f"encoded {size:,} bytes"))
    filled = filler.fill(sensitivities, begin + seconds)
    for _ in range(MOST_LOOKS):
        if filled.is_finest or time.monotonic() > begin + seconds / 2:
            break
        matter = _most_of(filled.nats, SECOND_LOOK_FRAC)
        chosen = {name: decoded(filled.stored[name].tensor) for name in matter}
        sensitivities |= measure_sensitivities(
            divergence, chosen, model.statistics, lambda done, total: progress(done, total, "measuring the choice")
        )
        filled = filler.fill(sensitivities, begin + seconds)
        if filled.predicted_nats >= (1.0 - CLOSE_FRAC) * _together(divergence, filled):
            break
    return Search(filled, sensitivities, _together(divergence, filled), divergence.symbols, filler.encodings)


def _together(divergence: Divergence, filled: Filled) -> float:
    """What all tensors cost together."""
    return divergence.of({name: decoded(made.tensor) for name, made in filled.stored.items()})


def _affordable(divergence: Divergence, passes: int, seconds: float) -> Divergence:
    """The divergence on as many of its windows as a number of passes can read in a time, at least one batch of them."""
    begin = time.monotonic()
    divergence.of({})
    windows = np.concatenate(divergence.batches)
    count = int(len(windows) * seconds / max(1e-9, passes * (time.monotonic() - begin)))
    if count >= len(windows):
        return divergence
    kept = np.linspace(0, len(windows) - 1, max(1, count)).round().astype(int)
    return Divergence(divergence.scorer_of, divergence.weights, windows[kept])


def _most_of(nats: Mapping[str, float], share: float) -> list[str]:
    """The names with the largest values that make up a share of the sum."""
    order = sorted(nats, key=lambda name: -nats[name])
    sums = np.cumsum([nats[name] for name in order])
    return order[: 1 + int(np.searchsorted(sums, share * sums[-1]))] if len(order) else []
