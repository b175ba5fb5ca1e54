"""Parameters that exist in training only: the heads and predictors of auxiliary losses (shared.spec.auxiliary).

`parameter_manifest` lists the model: what is scored, counted, predicted and packed. `training_parameters` lists what is
initialised, optimised, averaged and checkpointed: the model's parameters, in the same order, and after them these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from shared.model.manifest import ZEROS, Initial, Parameter, parameter_manifest
from shared.spec import Spec

# What the names of all these parameters start with.
AUXILIARY = "auxiliary."
CHUNK_PREDICTION = AUXILIARY + "chunk_prediction"

Value = TypeVar("Value")


def training_parameters(spec: Spec) -> tuple[Parameter, ...]:
    """Everything that training changes; without auxiliary losses the manifest itself."""
    return (*parameter_manifest(spec), *auxiliary_parameters(spec))


def auxiliary_parameters(spec: Spec) -> tuple[Parameter, ...]:
    """What training has beyond the model, in a fixed order."""
    loss, dim = spec.training.loss, spec.model.model_dim
    parameters = []
    for distance in range(1, len(loss.multi_symbol.weights) + 1):
        shape = (spec.model.patch_size * spec.vocabulary.size, dim)
        parameters.append(Parameter(multi_symbol_name(distance), shape, ZEROS, "head", "head"))
    if loss.embed_prediction.weight:
        # Zero: embeddings start small, and so does the distance to them.
        for place in range(1, loss.embed_prediction.symbols + 1):
            parameters.append(Parameter(embed_prediction_name(place), (dim, dim), ZEROS, "matrix", "matrix"))
    chunks = loss.chunk_prediction
    if chunks.weight:
        for side in ("latent", "prediction"):
            parameters.append(_matrix(f"{CHUNK_PREDICTION}.{side}_in.weight", chunks.hidden_dim, dim))
            parameters.append(_matrix(f"{CHUNK_PREDICTION}.{side}_out.weight", chunks.latent_dim, chunks.hidden_dim))
    return tuple(parameters)


def model_weights(spec: Spec, weights: Mapping[str, Value]) -> dict[str, Value]:
    """The weights without those of training only. Names that are neither stay, for the caller to refuse."""
    others = {parameter.name for parameter in auxiliary_parameters(spec)}
    return {name: value for name, value in weights.items() if name not in others}


def multi_symbol_name(distance: int) -> str:
    """The head that looks `distance` patches further than the model's own: [P * V, D]."""
    return f"{AUXILIARY}multi_symbol.{distance}.weight"


def embed_prediction_name(place: int) -> str:
    """The map from a trunk output to the embedding of the `place`th symbol ahead, counted from 1: [D, D]."""
    return f"{AUXILIARY}embed_prediction.{place}.weight"


def _matrix(name: str, rows: int, columns: int) -> Parameter:
    """A Muon matrix, uniform in +-1/sqrt(fan-in)."""
    return Parameter(name, (rows, columns), Initial("uniform", columns**-0.5), "matrix", "matrix")
