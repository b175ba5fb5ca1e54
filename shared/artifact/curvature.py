"""The curvature of the loss in each matrix, from gradients of an engine (docs/techniques.md 11.10).

With text that the model itself wrote the mean of a gradient's products is the Fisher information, which at an optimum
is the second derivative of the loss. Training text gives nearly the same for a model that predicts it well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.model import parameter_manifest
from shared.quantisers import Curvature
from shared.spec import Spec

# A table of more rows has none: the products of its rows with each other, float64 [rows, rows], would take 0.5 GB and
# more. What looks rows up is judged by how often each is read instead.
MOST_ROWS = 8192

Gradients = Callable[[NDArray[np.int32]], tuple[float, Mapping[str, NDArray[np.float32]]]]
"""`Engine.gradients`: mean nats per symbol and its gradients."""


def needs_curvature(spec: Spec) -> bool:
    """Whether a tensor of a spec is rounded by the curvature of the loss."""
    return any(settings.rounding == "two_sided" for settings in spec.artifact.all_settings)


def curved_tensors(spec: Spec) -> list[str]:
    """The names of the matrices and tables of up to MOST_ROWS rows that a spec rounds by the curvature of the loss."""
    return [
        each.name
        for each in parameter_manifest(spec)
        if each.quantisation != "control"
        and len(each.shape) == 2
        and each.shape[0] <= MOST_ROWS
        and spec.artifact.settings_of(each.name, each.quantisation).rounding == "two_sided"
    ]


def loss_curvature(
    gradients: Gradients, names: Sequence[str], batches: Iterable[NDArray[np.int32]]
) -> dict[str, Curvature]:
    """The curvature in the named matrices over batches of symbols [B, T], by name.

    Products of a batch are made in float32, whose rounding is far below the noise of a text, and added up in float64.
    Symbols far apart in a batch have independent gradients where the model wrote them, so one window in a batch gives
    as much as several.
    """
    sums: dict[str, Curvature] = {}
    symbols = 0
    for x in batches:
        _, found = gradients(x)
        symbols += x.size
        # A frozen matrix has no gradient.
        for name in (each for each in names if each in found):
            # Of the sum over the batch, not of its mean.
            gradient = found[name] * np.float32(x.size)
            if name not in sums:
                sums[name] = Curvature(*(np.zeros((size, size)) for size in reversed(gradient.shape)))
            # In place: of a table with MOST_ROWS rows each is 0.5 GB.
            np.add(sums[name].inputs, gradient.T @ gradient, out=sums[name].inputs)
            np.add(sums[name].outputs, gradient @ gradient.T, out=sums[name].outputs)
    for total in sums.values():
        np.divide(total.inputs, symbols, out=total.inputs)
        np.divide(total.outputs, symbols, out=total.outputs)
    return sums
