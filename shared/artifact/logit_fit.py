"""Fits the temperature and the bias of the logits to packed weights, on training text (docs/techniques.md 11.11).

The mean nats of softmax(l / T + b) are convex in (1 / T, b) for log-probabilities l, so there is one best fit. It is
approached in a fixed number of passes over the windows, each a step of Newton for 1 / T and one for every b[v] with the
diagonal of its curvature. Sums are in float64, and the results are rounded to a grid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.artifact.quantise import dequantise
from shared.engine.protocol import Scorer, Weights
from shared.model.logits import BIAS, LEAST_TEMPERATURE, MOST_BIAS, MOST_TEMPERATURE, TEMPERATURE
from shared.quantisers import Float32, QuantisedTensor

PASSES = 6
"""Over the windows. On `smoke` the next one would move no bias by more than a sixth of the grid."""

LOG_PROBS_BYTES = 1 << 28
"""Most bytes of float32 log-probabilities that are asked for at once."""

PRIOR_SYMBOLS = 400.0
"""Weight of a bias of 0, in symbols of text: a symbol that was hardly seen keeps its probability. On `smoke` 25 and
2,000 gain less on held-out text."""

TEMPERATURE_STEP, BIAS_STEP = 2.0**-10, 2.0**-6
"""Grids of the results, coarse to what engines differ by; the second costs some 1e-5 nats."""

Progress = Callable[[int, int], None]
ScorerOf = Callable[[Weights], Scorer]
Tensors = dict[str, QuantisedTensor]


def fit_logits(
    scorer: Scorer, windows: NDArray[np.int32], progress: Progress = lambda done, total: None
) -> dict[str, NDArray[np.float32]]:
    """The fit to windows [N, T]: T [1], and with artifact.logits "temperature_bias" b [V], by the names of
    shared.model.logits. `scorer` has weights without either. `progress` gets symbols read of all to read.
    """
    with_bias = scorer.spec.artifact.logits == "temperature_bias"
    size, (count, length) = scorer.spec.vocabulary.size, windows.shape
    rows = max(rows for rows in range(1, count + 1) if count % rows == 0 and (rows == 1 or _fits(rows, length, size)))
    seen = np.bincount(windows.reshape(-1), minlength=size).astype(np.float64)
    sharpness, bias = 1.0, np.zeros(size)
    for done in range(PASSES):
        expected, gradient, curvature = np.zeros(size), 0.0, 0.0
        for first in range(0, count, rows):
            x = windows[first : first + rows]
            log_probs = scorer.log_probs(x).astype(np.float64)
            probs = np.exp(sharpness * log_probs + bias)
            probs /= probs.sum(axis=-1, keepdims=True)
            mean = (probs * log_probs).sum(axis=-1)
            chosen = np.take_along_axis(log_probs, x[..., None], axis=-1)
            gradient += float(mean.sum() - chosen.sum())
            curvature += float((probs * log_probs**2).sum() - (mean**2).sum())
            expected += probs.sum(axis=(0, 1))
            progress((done * count + first + len(x)) * length, PASSES * windows.size)
        if curvature > 0.0:
            sharpness = float(np.clip(sharpness - gradient / curvature, 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE))
        if with_bias:
            bias += (seen - expected - PRIOR_SYMBOLS * bias) / (expected + PRIOR_SYMBOLS)
    fitted = {TEMPERATURE: _rounded(np.array([1.0 / sharpness]), TEMPERATURE_STEP)}
    if with_bias:
        fitted[BIAS] = _rounded(np.clip(bias, -MOST_BIAS, MOST_BIAS), BIAS_STEP)
    return fitted


def with_logits(
    tensors: Tensors,
    scorer_of: ScorerOf,
    windows: NDArray[np.int32],
    progress: Progress = lambda done, total: None,
) -> Tensors:
    """The tensors of an artifact with logits fitted to what they stand for, in place of any."""
    model = {name: tensor for name, tensor in tensors.items() if name not in (TEMPERATURE, BIAS)}
    fitted = fit_logits(scorer_of(dequantise(model)), windows, progress)
    stored = {name: QuantisedTensor(Float32(), value.shape, {"values": value}) for name, value in fitted.items()}
    return {**model, **stored}


def _fits(rows: int, length: int, size: int) -> bool:
    return 4 * rows * length * size <= LOG_PROBS_BYTES


def _rounded(values: NDArray[np.float64], step: float) -> NDArray[np.float32]:
    return (np.rint(values / step) * step).astype(np.float32)
