"""Updates on the three implementations with values on the host, and the orthogonal factor that Muon approximates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shared.model import parameter_manifest
from shared.model.initialise import named_generator
from shared.ops import Array, Ops
from shared.optim import global_norm, optimizer_step
from shared.optim.newton_schulz import NEWTON_SCHULZ
from shared.spec import OptimizerSpec, Spec
from tests.implementations import OPS

Tensors = dict[str, np.ndarray]


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """L2 norm of the difference over that of what is expected."""
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / max(float(np.linalg.norm(expected)), 1e-30))


def number(ops: Ops, value: float) -> Array:
    """A float64 scalar on the device."""
    return ops.asarray(np.array(value, np.float64))


def on_device(ops: Ops, values: Mapping[str, Any]) -> dict[str, Array]:
    return {key: ops.asarray(np.asarray(value)) for key, value in values.items()}


def on_host(ops: Ops, values: Mapping[str, Array]) -> Tensors:
    return {key: ops.to_numpy(value) for key, value in values.items()}


def random_tensors(spec: Spec, seed: int) -> Tensors:
    """Standard normal float32 values for every parameter."""
    return {
        parameter.name: named_generator(seed, parameter.name).standard_normal(parameter.shape).astype(np.float32)
        for parameter in parameter_manifest(spec)
    }


def step_on(
    name: str, spec: Spec, params: Tensors, grads: Tensors, state: Tensors, hyper: Mapping[str, float]
) -> tuple[Tensors, Tensors]:
    """(parameters, state) after optimizer_step on an implementation."""
    ops = OPS[name]
    given, grads, state = (on_device(ops, values) for values in (params, grads, state))
    scalars = {key: number(ops, value) for key, value in hyper.items()}
    new_params, new_state = optimizer_step(ops, spec, given, grads, state, global_norm(ops, grads), scalars)
    return on_host(ops, new_params), on_host(ops, new_state)


def plain_orthogonal(update: np.ndarray, optimizer: OptimizerSpec) -> np.ndarray:
    """The iteration on singular values: it never mixes singular vectors, so it is a polynomial on each value."""
    u, s, vt = np.linalg.svd(np.float64(update), full_matrices=False)
    if optimizer.ns_coefficients == "polar_express":
        s = s / (1.02 * np.sqrt(np.sum(s**2)) + 1e-6)
        first = [(8.15655, -22.48329, 15.87877), (4.04293, -2.80892, 0.50002), (3.89167, -2.77248, 0.50606)]
        rows = [*first, (3.28575, -2.36813, 0.46449), (2.34654, -1.70978, 0.42324)]
        exact = NEWTON_SCHULZ["polar_express"].coefficients
        assert np.allclose(rows, exact, atol=1e-5)
        rows = [*exact, *[exact[-1]] * optimizer.ns_steps][: optimizer.ns_steps]
    else:
        s = s / (np.sqrt(np.sum(s**2)) + 1e-7)
        rows = [(3.4445, -4.7750, 2.0315)] * optimizer.ns_steps
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt
