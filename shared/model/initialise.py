"""Initial weights, made in NumPy so that both engines start bit-identical."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from shared.errors import RunError
from shared.model.auxiliary import auxiliary_parameters, training_parameters
from shared.model.bigrams import BIGRAM_SYMBOLS, bigram_embedding
from shared.model.logits import logit_parameters
from shared.model.manifest import ADAPTER_B, Parameter
from shared.spec import Spec

# What model.embed_init applies to, and the smallest side that model.matrix_init applies to (docs/techniques.md 3.6).
SYMBOL_TABLES = ("embed.weight", "decoder.embed.weight")
LEAST_ORTHOGONAL_SIDE = 64


def named_generator(seed: int, name: str) -> np.random.Generator:
    """A PCG64 stream of its own for each (seed, name): adding a parameter moves no other."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.Generator(np.random.PCG64([seed, *words.tolist()]))


def initial_weights(spec: Spec, text: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """float32 weights by parameter name, a pure function of (spec, training.seed) and, where `reads_text`, of `text`.

    `text`: the first symbols of the training text, int32 [n]. Raises RunError where it is needed and missing.
    """
    if reads_text(spec) and text is None:
        raise RunError("model.embed_init 'bigram_svd': initial weights need the training text")
    return {parameter.name: _initial_value(spec, parameter, text) for parameter in training_parameters(spec)}


def reads_text(spec: Spec) -> bool:
    """Whether initial weights depend on the training text."""
    return spec.model.embed_init == "bigram_svd"


def with_auxiliary(spec: Spec, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights, and initial values of parameters of training only that they lack, as those from an artifact do."""
    missing = [parameter for parameter in auxiliary_parameters(spec) if parameter.name not in weights]
    return {**weights, **{parameter.name: _initial_value(spec, parameter, None) for parameter in missing}}


def with_fresh_factors(spec: Spec, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights with initial factors of model.lora, in place of any that they have."""
    fresh = {
        each.name: _drawn_value(each, spec.training.seed)
        for each in training_parameters(spec)
        if each.group == "adapter"
    }
    return {**weights, **fresh}


def with_neutral_logits(spec: Spec, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights, and where an artifact of the spec has a temperature or bias of the logits that they lack, 1 or 0."""
    missing = [parameter for parameter in logit_parameters(spec) if parameter.name not in weights]
    return {**weights, **{parameter.name: _initial_value(spec, parameter, None) for parameter in missing}}


def random_weights(spec: Spec, seed: int) -> dict[str, np.ndarray]:
    """float32 weights in which no two values are alike and none is zero, for checks on an untrained model.

    A fresh model hides bugs: its output projections are zero, so no input reaches any logit. Here
    matrices are normal with variance 1/fan-in and every other tensor is its initial value plus noise.
    """
    weights = {}
    for parameter in training_parameters(spec):
        name, value = parameter.name, _drawn_value(parameter, spec.training.seed)
        noise = named_generator(seed, name).standard_normal(value.shape).astype(np.float32)
        is_matrix = value.ndim == 2 and name.endswith(".weight")
        weights[name] = noise * value.shape[1] ** -0.5 if is_matrix else value + 0.1 * noise
        if name.endswith(ADAPTER_B):
            # What an adapter adds is as large as what it is added to.
            weights[name] = weights[name] * (spec.model.lora.rank / spec.model.lora.alpha)
        weights[name] = weights[name].astype(np.float32)
    return weights


def orthogonal(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A random matrix [rows, columns] with orthonormal columns, or rows where it is wide, float64.

    Q of a normal draw, with the signs that make the diagonal of R positive: without them Q is not uniform.
    """
    q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return q if rows >= columns else q.T


def overtone(table: np.ndarray) -> np.ndarray:
    """A matrix with the singular vectors of `table` and the singular values S[1] / sqrt(k), k from 1; float64."""
    left, singular, right = np.linalg.svd(table, full_matrices=False)
    falling = singular[0] / np.sqrt(np.arange(1, len(singular) + 1))
    return (left * falling) @ right


def _initial_value(spec: Spec, parameter: Parameter, text: np.ndarray | None) -> np.ndarray:
    """The initial value by the manifest, unless the model's own fields say otherwise."""
    model, seed = spec.model, spec.training.seed
    if parameter.name in SYMBOL_TABLES and model.embed_init != "normal":
        generator = named_generator(seed, parameter.name)
        draw = generator.standard_normal(parameter.shape) * parameter.initial.scale
        if model.embed_init == "overtone":
            return overtone(draw).astype(np.float32)
        assert text is not None
        return bigram_embedding(text[:BIGRAM_SYMBOLS], draw, parameter.initial.scale, generator).astype(np.float32)
    is_drawn_matrix = parameter.group == "matrix" and parameter.initial.distribution == "uniform"
    if model.matrix_init == "orthogonal" and is_drawn_matrix and min(parameter.shape) >= LEAST_ORTHOGONAL_SIDE:
        return orthogonal(named_generator(seed, parameter.name), *parameter.shape).astype(np.float32)
    return _drawn_value(parameter, seed)


def _drawn_value(parameter: Parameter, seed: int) -> np.ndarray:
    """The initial value by the manifest."""
    initial, shape = parameter.initial, parameter.shape
    generator = named_generator(seed, parameter.name)
    if initial.distribution == "normal":
        return (generator.standard_normal(shape) * initial.scale).astype(np.float32)
    if initial.distribution == "uniform":
        return generator.uniform(-initial.scale, initial.scale, shape).astype(np.float32)
    value = np.full(shape, initial.scale, np.float32)
    if initial.distribution == "first_row_ones":
        value[0] = 1.0
    elif initial.distribution == "first_row_share":
        value[1] = 1.0 - value[0]
    return value
