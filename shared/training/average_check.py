"""Is every average that a run keeps part of what it scores and packs? (FEATURES 3.8)"""

from __future__ import annotations

import numpy as np

from shared.engine import Engine
from shared.scoring.checks import Check

# Kinds of state that exist only to be exported.
AVERAGE_KINDS = ("average", "snapshot_mean")


def check_average(engine: Engine) -> Check:
    """Move each kind of average in the engine's state and see whether the averaged weights move with it.

    Five published systems collected snapshots and scored without them. The engine's state is as before afterwards.
    What is frozen has no averages. Fails as well where snapshots are wanted and none was taken.
    """
    state = engine.save_state()
    before = engine.export_weights("averaged")
    kept = {kind: [name for name in before if f"{kind}/{name}" in state] for kind in AVERAGE_KINDS}
    idle = []
    for kind, names in kept.items():
        engine.load_state({name: value + np.float32(name.startswith(f"{kind}/")) for name, value in state.items()})
        after = engine.export_weights("averaged")
        if any(np.array_equal(after[name], before[name]) for name in names):
            idle.append(kind)
    engine.load_state(state)
    detail = f"{', '.join(idle)} kept without effect on the averaged weights" if idle else "all that is kept is applied"
    return Check("average", not idle, float(len(idle)), 0.0, detail)
