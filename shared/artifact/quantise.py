"""Stores every tensor of a model as parts by the method of its class, and restores it (shared.quantisers)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from shared.errors import ArtifactError
from shared.model.manifest import Parameter
from shared.quantisers import Float32, InputStatistics, LowRank, QuantisedTensor, Quantiser, Storage, quantiser_of
from shared.quantisers.low_rank import with_corrections
from shared.spec import ArtifactSpec


def storage_of(parameter: Parameter, spec: ArtifactSpec) -> Float32 | Quantiser:
    """The storage that a spec gives a parameter; controls and tensors without rows stay float32."""
    if parameter.quantisation == "control" or len(parameter.shape) < 2:
        return Float32()
    return quantiser_of(spec.settings_of(parameter.name, parameter.quantisation), parameter.shape)


def storages_of(manifest: Iterable[Parameter], spec: ArtifactSpec) -> dict[str, Storage]:
    """The storage of every tensor of a manifest by name."""
    return {parameter.name: storage_of(parameter, spec) for parameter in manifest}


def quantise(
    weights: Mapping[str, NDArray[np.float32]],
    storages: Mapping[str, Storage],
    statistics: Mapping[str, InputStatistics] | None = None,
    lqer_tensors: int | None = None,
) -> dict[str, QuantisedTensor]:
    """Every tensor as it is stored, in the order of the storages. `statistics` of the tensors whose method needs them,
    by name. With `lqer_tensors` only that many keep their low-rank correction, those with the largest errors.

    A tensor whose inputs have no Gram matrix is stored as its method does without (`Storage.settled`). Raises
    ArtifactError naming the tensor for a weight that is not finite, not float32 or too large for its method, and for
    statistics that are missing.
    """
    tensors, ranks = {}, {}
    for name, storage in storages.items():
        first: Storage = storage
        if lqer_tensors is not None and isinstance(storage, LowRank):
            first, ranks[name] = storage.base, storage.rank
        try:
            tensors[name] = _quantise(weights[name], first, (statistics or {}).get(name))
        except ArtifactError as error:
            raise ArtifactError(f"tensor {name}: {error}") from None
    return with_corrections(tensors, weights, ranks, lqer_tensors or 0)


def dequantise(tensors: Mapping[str, QuantisedTensor]) -> dict[str, NDArray[np.float32]]:
    """The float32 weights that the parts stand for, in the given order."""
    return {name: tensor.storage.decode(tensor.shape, tensor.parts) for name, tensor in tensors.items()}


def _quantise(weights: NDArray[np.float32], storage: Storage, statistics: InputStatistics | None) -> QuantisedTensor:
    if weights.dtype != np.float32:
        raise ArtifactError(f"dtype {weights.dtype}, must be float32")
    if not np.isfinite(weights).all():
        count = int(weights.size - np.isfinite(weights).sum())
        raise ArtifactError(f"{count} of {weights.size} weights are not finite, nothing to pack")
    if storage.needs_statistics and statistics is None:
        raise ArtifactError(f"method {storage.method} needs statistics of its inputs, there are none")
    storage = storage.settled(weights.shape, statistics)
    return QuantisedTensor(storage, weights.shape, storage.encode(weights, statistics))
