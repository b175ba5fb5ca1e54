"""Checks that quantisation-aware training acts, on the codes of the artifact (docs/techniques.md 11.2)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.artifact.quantise import storage_of
from shared.engine.protocol import Engine
from shared.model import parameter_manifest
from shared.model.qat import quantised_matrices
from shared.model.stages import CODE_ENTROPY, QAT
from shared.optim import step_hyperparameters
from shared.scoring.checks import Check

# Rounding matrices to 8 bits moves the gradient by 1.7e-4 of itself and more, even that of initial weights.
LEAST_CHANGE_FRAC = 2e-5
# How many times what a repetition moves it by, on devices that add up in no fixed order.
REPETITIONS = 3.0

# Share of what quantisation changes in a gradient by which it may differ from the gradient at the stored weights.
# Equal codes differ by rounding, 1e-4 and less; another grid by as much as there is, 1.
GRID_FRAC = 0.1


def check_qat_acts(engine: Engine, x: np.ndarray) -> Check:
    """Switch quantisation off and on, as steps do, and see whether the gradient at x [B, T] changes; nothing
    else does. After few steps the loss itself need not change, because many matrices begin as zeros.

    Four published systems kept the switch in a flag that the compiler had folded away before it was set.
    """
    steps = engine.spec.training.steps
    numbers = step_hyperparameters(engine.spec, steps - 1, (steps - 1) / steps)
    off, on, again = (_flat(engine.gradients(x, numbers.with_run({QAT: acting}))[1]) for acting in (0.0, 1.0, 0.0))
    size = max(float(np.linalg.norm(off)), float(np.finfo(np.float32).tiny))
    moved, repeated = (float(np.linalg.norm(other - off)) / size for other in (on, again))
    limit = max(LEAST_CHANGE_FRAC, REPETITIONS * repeated)
    detail = f"switching it on moves the gradient by {moved:.1e} of itself, repeating it by {repeated:.1e}"
    return Check("qat", moved > limit, moved, limit, detail)


def check_qat_codes(engine: Engine, weights: Mapping[str, np.ndarray], x: np.ndarray) -> Check:
    """Compare the gradient of the loss of x [B, T] with that at the weights which the artifact's codes stand for.

    Straight through, they are the same: the loss reads the rounded weights and the gradient passes the rounding. A grid
    other than the artifact's, such as scales of 1/31 and more whatever the weights, trains for what is never packed.
    The engine has other weights afterwards.
    """
    spec = engine.spec
    stored, matrices = dict(weights), quantised_matrices(spec)
    for parameter in parameter_manifest(spec):
        storage = storage_of(parameter, spec.artifact)
        if parameter.name in matrices:
            parts = storage.grid.encode(weights[parameter.name])
            stored[parameter.name] = storage.grid.decode(parameter.shape, parts)
    as_read, as_it_is = (_gradient(engine, weights, x, acting) for acting in (1.0, 0.0))
    as_stored = _gradient(engine, stored, x, 0.0)
    changed, apart = np.linalg.norm(as_it_is - as_stored), np.linalg.norm(as_read - as_stored)
    ratio = float(apart / changed) if changed > 0 else float(apart > 0)
    detail = f"the gradient differs from that at the stored weights by {ratio:.1e} of what quantisation changes in it"
    return Check("qat_codes", ratio <= GRID_FRAC, ratio, GRID_FRAC, detail)


def _gradient(engine: Engine, weights: Mapping[str, np.ndarray], x: np.ndarray, acting: float) -> np.ndarray:
    """The gradient of all parameters in one row, without the loss on codes, which is of the weights themselves."""
    spec = engine.spec
    numbers = step_hyperparameters(spec, spec.training.steps - 1, (spec.training.steps - 1) / spec.training.steps)
    switches = {QAT: acting} | ({CODE_ENTROPY: 0.0} if CODE_ENTROPY in numbers.run else {})
    engine.initialise(weights)
    return _flat(engine.gradients(x, numbers.with_run(switches))[1])


def _flat(gradients: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([gradients[name].reshape(-1) for name in sorted(gradients)])
