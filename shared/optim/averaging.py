"""Averages of the weights over a run: EMA, SWA and their blend (docs/techniques.md 10).

State, by kind: `average` is the EMA; `snapshot_mean` the mean of the snapshots so far and `snapshot_count` their
number, float32 [1]. What is collected is what is exported: `averaged_weights` reads all of it. An average is of the
weights after the steps of the run and of nothing else: the initial weights have no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shared.ops import Array, Ops
from shared.spec import TrainingSpec


def keeps_average(training: TrainingSpec) -> bool:
    """Whether any average of the weights is kept."""
    return training.ema_decay > 0 or training.swa_every_steps > 0


def ema_rate(training: TrainingSpec, step: int) -> float:
    """The share of the weights after step `step` (from 0) in the EMA then: (1 - d) / (1 - d^t), t = step + 1.

    With it the EMA after t steps is sum_{i=1..t} (1 - d) d^(t - i) w_i / (1 - d^t) of the weights w_i after step i.
    The first rate is 1, the last ones are 1 - d.
    """
    decay = training.ema_decay
    return (1.0 - decay) / (1.0 - decay ** (step + 1))


def takes_snapshot(training: TrainingSpec, step: int, progress: float) -> bool:
    """Whether the weights after step `step` (from 0), which began at `progress`, are a snapshot."""
    every = training.swa_every_steps
    return every > 0 and (step + 1) % every == 0 and progress >= training.swa_start_frac


def average_shapes(training: TrainingSpec, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Kinds of average that are kept of a parameter, with the shapes of their state."""
    kinds = {"average": shape} if training.ema_decay > 0 else {}
    if training.swa_every_steps > 0:
        kinds |= {"snapshot_mean": shape, "snapshot_count": (1,)}
    return kinds


def initial_averages(training: TrainingSpec, name: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """State of one parameter before the first step: averages at the weights, no snapshots."""
    return {
        f"{kind}/{name}": np.zeros(shape, np.float32) if kind == "snapshot_count" else weight.astype(np.float32)
        for kind, shape in average_shapes(training, weight.shape).items()
    }


def update_averages(
    training: TrainingSpec, params: Mapping[str, Array], state: Mapping[str, Array], rate: Array, snapshot: Array
) -> dict[str, Array]:
    """The averages after a step that led to `params`; `rate` is the step's `ema_rate`, `snapshot` 1 where they are a
    snapshot, else 0.

    EMA: a = a + rate (p - a); equal weights stay as they are however `rate` is rounded. SWA: n = n + snapshot,
    r = snapshot / n, mean = (1 - r) mean + r p, which for r = 0 and r = 1 is exact.
    """
    new: dict[str, Array] = {}
    for name, value in params.items():
        if training.ema_decay > 0:
            average = state[f"average/{name}"]
            new[f"average/{name}"] = average + rate * (value - average)
        if training.swa_every_steps > 0:
            count = state[f"snapshot_count/{name}"] + snapshot
            # Without a snapshot the divisor is not used, and must not be zero.
            share = snapshot / (count + (1.0 - snapshot))
            new[f"snapshot_mean/{name}"] = (1.0 - share) * state[f"snapshot_mean/{name}"] + share * value
            new[f"snapshot_count/{name}"] = count
    return new


def averaged_weights(
    ops: Ops, training: TrainingSpec, params: Mapping[str, Array], state: Mapping[str, Array]
) -> dict[str, Array]:
    """The weights to score and to pack, by parameter name.

    With EMA and SWA: swa_share * SWA + (1 - swa_share) * EMA. Before the first snapshot SWA does not count. Without any
    average, and for frozen weights, these are the trained weights themselves.
    """
    averaged: dict[str, Array] = {}
    for name, value in params.items():
        rest = state.get(f"average/{name}", value)
        if f"snapshot_count/{name}" in state:
            any_snapshot = ops.minimum(state[f"snapshot_count/{name}"], 1.0)
            share = (training.swa_share if training.ema_decay > 0 else 1.0) * any_snapshot
            rest = share * state[f"snapshot_mean/{name}"] + (1.0 - share) * rest
        averaged[name] = rest
    return averaged
