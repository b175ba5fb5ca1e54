"""How much of the loss the error of each stored tensor costs, measured (docs/techniques.md 12.4).

The cost of stored weights is the mean over a calibration text of KL(p || q), p the distribution that the float weights
predict and q that of the stored ones. At an optimum of the loss its expectation is the difference of the losses, but it
is quadratic in the error of the weights and has no linear term that a sample of text must average out, so a few windows
give it to some per cent. A tensor's error is what it changes in the outputs that it makes. Cost over error, the
sensitivity, is measured once, each tensor stored alone; the cost of any other storage is predicted from its error, and
that of a model is the sum over tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.engine.protocol import Scorer
from shared.quantisers import InputStatistics
from shared.quantisers.gptq import error_on_inputs

Weights = Mapping[str, NDArray[np.float32]]
Progress = Callable[[int, int], None]


class Divergence:
    """Measures what replacing some weights of a model costs, in nats per symbol, on fixed windows of text."""

    def __init__(self, scorer_of: Callable[[Weights], Scorer], weights: Weights, windows: NDArray[np.int32]) -> None:
        """`windows` is int32 [N, T], T the model's window. `scorer_of` may give the same scorer with other weights."""
        self.scorer_of, self.weights = scorer_of, weights
        scorer = scorer_of(weights)
        rows = max(1, scorer.spec.evaluation.batch_symbols // scorer.spec.model.seq_len)
        self.batches = [windows[first : first + rows] for first in range(0, len(windows), rows)]
        self.reference = [scorer.log_probs(x) for x in self.batches]

    @property
    def symbols(self) -> int:
        """Symbols that a measurement is the mean over."""
        return sum(x.size for x in self.batches)

    def of(self, changed: Weights) -> float:
        """The mean of KL(p || q) over all symbols, q having the tensors in `changed`, nats."""
        scorer = self.scorer_of({**self.weights, **changed})
        return sum(_summed_kl(p, scorer.log_probs(x)) for p, x in zip(self.reference, self.batches, strict=True)) / (
            self.symbols
        )


@dataclass(frozen=True)
class Sensitivity:
    """What one tensor's error cost, `nats` per symbol, when it alone was stored with `error`."""

    nats: float
    error: float

    def predicted_nats(self, error: float) -> float:
        """The cost of another error; of a tensor that was stored exactly nothing is known, so none."""
        return self.nats * error / self.error if self.error > 0.0 else 0.0


def measure_sensitivities(
    divergence: Divergence,
    stored: Weights,
    statistics: Mapping[str, InputStatistics] | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Sensitivity]:
    """The sensitivity to every tensor of `stored`, weights as an artifact gives them back, each replaced alone."""
    found = {}
    for done, (name, values) in enumerate(stored.items(), start=1):
        error = stored_error(divergence.weights[name], values, (statistics or {}).get(name))
        found[name] = Sensitivity(divergence.of({name: values}) if error > 0.0 else 0.0, error)
        progress(done, len(stored))
    return found


def stored_error(
    weights: NDArray[np.float32], stored: NDArray[np.float32], statistics: InputStatistics | None = None
) -> float:
    """The size of E = stored - weights. With the curvature of the loss, tr(G E H E') of its factors G of outputs and H
    of inputs. Else tr(E H E') with H the mean product of the tensor's inputs, the mean squared change of its outputs;
    for a table that only looks rows up, the mean squared change of what is read; without statistics, the sum of
    squares."""
    error = (stored - weights).astype(np.float64).reshape(-1, weights.shape[-1])
    curvature = None if statistics is None or weights.ndim != 2 else statistics.curvature
    if curvature is not None and np.trace(curvature.outputs) > 0.0:
        weighed = curvature.outputs @ error @ curvature.inputs
        return float(np.einsum("rc,rc->", weighed, error)) / float(np.trace(curvature.outputs))
    if statistics is not None and statistics.gram is not None and statistics.rows > 0:
        return error_on_inputs(error, statistics.gram) / statistics.rows
    if statistics is not None and statistics.reads is not None and statistics.reads.sum() > 0:
        return float(np.square(error).sum(axis=1) @ statistics.reads) / float(statistics.reads.sum())
    return float(np.square(error).sum())


def _summed_kl(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """The sum over positions of KL(p || q) of log-probabilities [B, T, V].

    As both sum to 1 it is the sum of p (exp(d) - 1 - d), d = ln q - ln p. No term of that is negative, and the rounding
    of logarithms enters squared: the plain form would drown costs of 1e-6 in it.
    """
    difference = q.astype(np.float64) - p
    return float((np.exp(p.astype(np.float64)) * (np.expm1(difference) - difference)).sum())
