"""Checks that every average a run keeps is used in its score and artifact, and averages the run's own weights alone
(docs/techniques.md 10)."""

from __future__ import annotations

import numpy as np

from shared.engine.protocol import Engine, Weights
from shared.optim import step_hyperparameters
from shared.scoring.checks import Check
from shared.tolerances import AVERAGE_START_FRAC

# Kinds of state that exist only to be exported.
AVERAGE_KINDS = ("average", "snapshot_mean")


def check_average(engine: Engine, x: np.ndarray) -> Check:
    """Move each kind of average in the engine's state and see whether the averaged weights move with it; then see what
    is left of an EMA after a first step, on the batch x [B, T].

    Five published systems collected snapshots and scored without them; an EMA that starts at the initial weights keeps
    a part of them. The engine's state is restored afterwards. Frozen weights have no averages. Also fails if snapshots
    are wanted and none was taken.
    """
    state = engine.save_state()
    problems = [f"{kind} kept without effect on the averaged weights" for kind in _idle_kinds(engine, state)]
    left_frac = _left_of_the_start(engine, state, x)
    if left_frac > AVERAGE_START_FRAC:
        problems.append(f"the average keeps {left_frac:.1%} of what it was before the first step")
    engine.load_state(state)
    detail = "; ".join(problems) or "every average is used, and is of trained weights alone"
    return Check("average", not problems, float(len(problems)), 0.0, detail)


def _idle_kinds(engine: Engine, state: Weights) -> list[str]:
    """Kinds of average that the averaged weights do not depend on."""
    before = engine.export_weights("averaged")
    kept = {kind: [name for name in before if f"{kind}/{name}" in state] for kind in AVERAGE_KINDS}
    idle = []
    for kind, names in kept.items():
        engine.load_state(_moved(state, kind))
        after = engine.export_weights("averaged")
        if any(np.array_equal(after[name], before[name]) for name in names):
            idle.append(kind)
    return idle


def _left_of_the_start(engine: Engine, state: Weights, x: np.ndarray) -> float:
    """The share of an EMA's value before the first step of a run that is left after it, at most over all parameters.

    The EMA is moved by 1 everywhere before the step; its distance from the weights afterwards is what is left.
    """
    engine.load_state(_moved(state, "average"))
    engine.train_step(x, step_hyperparameters(engine.spec, 0, 0.0))()
    after = engine.save_state()
    names = [name.removeprefix("average/") for name in after if name.startswith("average/")]
    return max((float(np.abs(after[f"average/{name}"] - after[f"weight/{name}"]).max()) for name in names), default=0.0)


def _moved(state: Weights, kind: str) -> dict[str, np.ndarray]:
    """The state with 1 added to all values of a kind."""
    return {name: value + np.float32(name.startswith(f"{kind}/")) for name, value in state.items()}
