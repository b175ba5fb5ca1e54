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

# Below the float32 rounding of a loss; rounding a matrix to 4 to 8 bits moves it by more.
LEAST_CHANGE_NATS = 1e-7

# Share of what quantisation changes in a gradient by which it may differ from the gradient at the stored weights.
# Equal codes differ by rounding, 1e-4 and less; another grid by as much as there is, 1.
GRID_FRAC = 0.1


def check_qat_acts(engine: Engine, x: np.ndarray) -> Check:
    """Switch quantisation off and on, as steps do, and see whether the loss of x [B, T] changes. Nothing else does.

    Four published systems kept the switch in a flag that the compiler had folded away before it was set.
    """
    steps = engine.spec.training.steps
    numbers = step_hyperparameters(engine.spec, steps - 1, (steps - 1) / steps)
    losses = {acting: engine.gradients(x, numbers.with_run({QAT: acting}))[0] for acting in (0.0, 1.0)}
    moved = abs(losses[1.0] - losses[0.0])
    detail = f"switching it on moves the training loss by {moved:.1e} nats"
    return Check("qat", moved > LEAST_CHANGE_NATS, moved, LEAST_CHANGE_NATS, detail)


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
    """The gradient of all parameters in one line, without the loss on codes, which is of the weights themselves."""
    spec = engine.spec
    numbers = step_hyperparameters(spec, spec.training.steps - 1, (spec.training.steps - 1) / spec.training.steps)
    switches = {QAT: acting} | ({CODE_ENTROPY: 0.0} if CODE_ENTROPY in numbers.run else {})
    engine.initialise(weights)
    gradients = engine.gradients(x, numbers.with_run(switches))[1]
    return np.concatenate([gradients[name].reshape(-1) for name in sorted(gradients)])
