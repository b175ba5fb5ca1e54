"""Checks that quantisation-aware training changes the training loss (docs/techniques.md 11.2)."""

from __future__ import annotations

import numpy as np

from shared.engine.protocol import Engine
from shared.model.stages import QAT
from shared.optim import step_hyperparameters
from shared.scoring.checks import Check

# Below the float32 rounding of a loss; rounding a matrix to 4 to 8 bits moves it by more.
LEAST_CHANGE_NATS = 1e-7


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
