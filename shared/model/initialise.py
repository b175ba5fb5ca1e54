"""Initial weights, made in NumPy so that both engines start bit-identical."""

from __future__ import annotations

import hashlib

import numpy as np

from shared.model.manifest import Parameter, parameter_manifest
from shared.spec import Spec


def named_generator(seed: int, name: str) -> np.random.Generator:
    """A PCG64 stream of its own for each (seed, name): adding a parameter moves no other."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.Generator(np.random.PCG64([seed, *words.tolist()]))


def initial_weights(spec: Spec) -> dict[str, np.ndarray]:
    """float32 weights by parameter name, a pure function of (spec, training.seed)."""
    seed = spec.training.seed
    return {parameter.name: _initial_value(parameter, seed) for parameter in parameter_manifest(spec)}


def random_weights(spec: Spec, seed: int) -> dict[str, np.ndarray]:
    """float32 weights in which nothing is zero or alike, for checks on an untrained model.

    A fresh model hides bugs: its output projections are zero, so no input reaches any logit. Here
    matrices are normal with variance 1/fan-in and every other tensor is its initial value disturbed.
    """
    weights = {}
    for name, value in initial_weights(spec).items():
        noise = named_generator(seed, name).standard_normal(value.shape).astype(np.float32)
        is_matrix = value.ndim == 2 and name.endswith(".weight")
        weights[name] = noise * value.shape[1] ** -0.5 if is_matrix else value + 0.1 * noise
        weights[name] = weights[name].astype(np.float32)
    return weights


def _initial_value(parameter: Parameter, seed: int) -> np.ndarray:
    initial, shape = parameter.initial, parameter.shape
    generator = named_generator(seed, parameter.name)
    if initial.distribution == "normal":
        return (generator.standard_normal(shape) * initial.scale).astype(np.float32)
    if initial.distribution == "uniform":
        return generator.uniform(-initial.scale, initial.scale, shape).astype(np.float32)
    value = np.full(shape, initial.scale, np.float32)
    if initial.distribution == "first_row_ones":
        value[0] = 1.0
    return value
