"""The curvature of the loss in each matrix, from gradients of an engine (docs/techniques.md 11.10).

With text that the model itself wrote the mean of a gradient's products is the Fisher information, which at an optimum
is the second derivative of the loss. Training text gives nearly the same for a model that predicts it well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

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


def loss_curvature(gradients: Gradients, spec: Spec, batches: Iterable[NDArray[np.int32]]) -> dict[str, Curvature]:
    """The curvature in every matrix and table of up to MOST_ROWS rows over batches of symbols [B, T], by name.

    Products of a batch are made in float32, whose rounding is far below the noise of a text, and added up in float64.
    Symbols far apart in a batch have independent gradients where the model wrote them, so one window in a batch gives
    as much as several.
    """
    names = [
        each.name
        for each in parameter_manifest(spec)
        if each.quantisation != "control" and len(each.shape) == 2 and each.shape[0] <= MOST_ROWS
    ]
    inputs: dict[str, NDArray[np.float64]] = {}
    outputs: dict[str, NDArray[np.float64]] = {}
    symbols = 0
    for x in batches:
        _, found = gradients(x)
        symbols += x.size
        for name in names:
            # Of the sum over the batch, not of its mean; a frozen matrix has no gradient.
            gradient = found[name] * np.float32(x.size) if name in found else None
            if gradient is not None:
                inputs[name] = inputs.get(name, 0.0) + (gradient.T @ gradient).astype(np.float64)
                outputs[name] = outputs.get(name, 0.0) + (gradient @ gradient.T).astype(np.float64)
    return {name: Curvature(inputs[name] / symbols, outputs[name] / symbols) for name in inputs}
