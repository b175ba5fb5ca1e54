"""The model that a budget is filled with: its tensors by any settings, with the bits and the error of each
(docs/techniques.md 12.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from shared.artifact.curves import CODE_BITS, Curve, decoded, measure_curve, stored_bits
from shared.artifact.quantise import quantise
from shared.artifact.sensitivity import Weights, stored_error
from shared.errors import ArtifactError
from shared.quantisers import InputStatistics, QuantisedTensor, quantiser_of
from shared.spec import ArtifactSpec, QuantiserSpec, Spec
from shared.spec.artifact import Codec

MEASURED_WEIGHTS = 1 << 17
"""Curves of larger matrices are measured on some of their rows: encoding puts them right."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor by the settings of a choice: the bits that its coder is expected to take, and its error."""

    settings: QuantiserSpec
    tensor: QuantisedTensor
    bits: float
    error: float


@dataclass(frozen=True)
class Model:
    """What is stored: float weights of a spec's model, the methods that each tensor may be stored by, the statistics of
    the inputs by name, and the codec."""

    spec: Spec
    weights: Weights
    methods: Mapping[str, Sequence[QuantiserSpec]]
    statistics: Mapping[str, InputStatistics] = field(default_factory=dict)
    codec: Codec = "range"

    @property
    def coding(self) -> ArtifactSpec:
        """The settings of compression."""
        return self.spec.artifact.model_copy(update={"codec": self.codec})

    def stored(self, name: str, settings: QuantiserSpec) -> StoredTensor:
        """One tensor by some settings. Raises ArtifactError if they cannot store it."""
        tensor = _stored(self.weights[name], settings, self.statistics.get(name))
        return self.measured(name, settings, tensor)

    def measured(self, name: str, settings: QuantiserSpec, tensor: QuantisedTensor) -> StoredTensor:
        """A tensor that is stored already, with its bits and error."""
        error = stored_error(self.weights[name], decoded(tensor), self.statistics.get(name))
        return StoredTensor(settings, tensor, stored_bits(tensor, CODE_BITS[self.codec]), error)

    def curves(self, name: str) -> list[Curve]:
        """The curves of a tensor, by method, measured on some of its rows. Raises ArtifactError, with its name, if no
        method can store it."""
        whole = self.weights[name]
        weights, statistics = some_rows(whole, self.statistics.get(name), MEASURED_WEIGHTS)

        def store(settings: QuantiserSpec) -> tuple[float, float]:
            tensor = _stored(weights, settings, statistics)
            factor = whole.size / weights.size
            # What is read of a table is a mean over its rows, all other errors are sums.
            is_mean = statistics is not None and statistics.gram is None and statistics.reads is not None
            error = stored_error(weights, decoded(tensor), statistics)
            return factor * stored_bits(tensor, CODE_BITS[self.codec]), error if is_mean else factor * error

        curves, problem = [], ""
        for base in self.methods[name]:
            try:
                curves.append(measure_curve(store, base, weights))
            except ArtifactError as error:
                problem = str(error)
        if not curves:
            raise ArtifactError(f"tensor {name}: {problem}")
        return curves


def _stored(
    weights: NDArray[np.float32], settings: QuantiserSpec, statistics: InputStatistics | None
) -> QuantisedTensor:
    of_inputs = {} if statistics is None else {"": statistics}
    return quantise({"": weights}, {"": quantiser_of(settings, weights.shape)}, of_inputs)[""]


def some_rows(
    weights: NDArray[np.float32], statistics: InputStatistics | None, most_weights: int
) -> tuple[NDArray[np.float32], InputStatistics | None]:
    """A matrix of about so many weights, its rows taken at equal distances, with the statistics that belong to them."""
    stride = weights.size // most_weights
    if weights.ndim != 2 or stride < 2 or len(weights) < 2 * stride:
        return weights, statistics
    if statistics is None:
        return np.ascontiguousarray(weights[::stride]), None
    curvature, reads = statistics.curvature, statistics.reads
    if curvature is not None:
        curvature = replace(curvature, outputs=np.ascontiguousarray(curvature.outputs[::stride, ::stride]))
    reads = None if reads is None else reads[::stride]
    return np.ascontiguousarray(weights[::stride]), replace(statistics, reads=reads, curvature=curvature)
