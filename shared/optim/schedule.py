"""Schedules: every hyperparameter of a step as a function of progress and step number (FEATURES 3.6).

Computed on the host in double precision and handed to the compiled step as numbers, so that both
engines use the same ones and nothing recompiles.
"""

from __future__ import annotations

import math

from shared.optim.averaging import takes_snapshot
from shared.spec import OptimizerSpec, ScheduleSpec, Spec
from shared.stages import stage_numbers

# Names of the numbers of an update in `step_hyperparameters`.
HYPERPARAMETERS = (
    "matrix_lr",
    "embedding_lr",
    "head_lr",
    "scalar_lr",
    "adapter_lr",
    "momentum",
    "first_correction",
    "second_correction",
    "decay_factor",
    "snapshot",
)


def progress_frac(spec: Spec, step: int, elapsed_s: float) -> float:
    """How far a run is, in [0, 1], after `step` steps and `elapsed_s` seconds of training."""
    by_steps = step / spec.training.steps
    by_time = elapsed_s / spec.training.time_limit_s if spec.schedule.driver == "time" else 0.0
    return min(1.0, max(by_steps, by_time))


def lr_factor(schedule: ScheduleSpec, progress: float) -> float:
    """The factor on every peak learning rate: linear warm-up, constant, then the warm-down."""
    if progress < schedule.warmup_frac:
        return progress / schedule.warmup_frac
    remaining = 1.0 - progress
    if schedule.warmdown_frac == 0.0 or remaining >= schedule.warmdown_frac:
        return 1.0
    share = remaining / schedule.warmdown_frac
    if schedule.warmdown_shape == "cosine":
        share = 0.5 - 0.5 * math.cos(math.pi * share)
    return schedule.min_lr_frac + (1.0 - schedule.min_lr_frac) * share


def decay_factor(schedule: ScheduleSpec, progress: float) -> float:
    """The factor on every weight decay: 1, then linear to its end value; times the learning-rate factor if wanted."""
    start = schedule.decay_taper_start_frac
    done = max(0.0, progress - start) / (1.0 - start)
    taper = 1.0 - (1.0 - schedule.decay_end_frac) * done
    return taper * lr_factor(schedule, progress) if schedule.decay_follows_lr else taper


def changes_decay(schedule: ScheduleSpec) -> bool:
    """Whether `decay_factor` is ever anything but 1."""
    return schedule.decay_follows_lr or schedule.decay_end_frac != 1.0


def muon_momentum(optimizer: OptimizerSpec, step: int) -> float:
    """Momentum at a step: linear from its start value over the warm-up steps, then constant."""
    if step >= optimizer.muon_momentum_warmup_steps:
        return optimizer.muon_momentum
    share = step / optimizer.muon_momentum_warmup_steps
    return (1.0 - share) * optimizer.muon_momentum_start + share * optimizer.muon_momentum


def step_hyperparameters(spec: Spec, step: int, progress: float) -> dict[str, float]:
    """The numbers one step needs; `step` counts from 0. Learning rates already carry the factor.

    Besides HYPERPARAMETERS these are what `shared.stages` says of the forward pass, nothing for most specs.
    """
    optimizer = spec.optimizer
    factor = lr_factor(spec.schedule, progress)
    values = (
        optimizer.matrix_lr * factor,
        optimizer.embed_lr * factor,
        optimizer.head_lr * factor,
        optimizer.scalar_lr * factor,
        optimizer.adapter_lr * factor,
        muon_momentum(optimizer, step),
        1.0 - optimizer.adam_beta1 ** (step + 1),
        1.0 - optimizer.adam_beta2 ** (step + 1),
        decay_factor(spec.schedule, progress),
        float(takes_snapshot(spec.training, step, progress)),
    )
    return dict(zip(HYPERPARAMETERS, values, strict=True)) | stage_numbers(spec, step, progress)
