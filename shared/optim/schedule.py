"""Schedules: every hyperparameter of a step as a function of progress and step number (docs/techniques.md 9.8).

Computed on the host in double precision and handed to the compiled step as numbers, so that both
engines use the same ones and nothing recompiles.
"""

from __future__ import annotations

import math

from shared.model.stages import StepNumbers, run_numbers, stage_of
from shared.optim.averaging import ema_rate, takes_snapshot
from shared.spec import OptimizerSpec, ScheduleSpec, Spec

# Names of the numbers of an update.
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
    "average_rate",
    "snapshot",
)


def progress_frac(spec: Spec, step: int, elapsed_s: float, end_s: float | None = None) -> float:
    """How far a run is, in [0, 1], after `step` steps and `elapsed_s` seconds of training.

    `end_s` is the training time at which a run by the clock will end, by default its limit.
    """
    by_steps = step / spec.training.steps
    if spec.schedule.driver == "steps":
        return min(1.0, by_steps)
    by_time = elapsed_s / (spec.training.steps_limit_s if end_s is None else end_s)
    return min(1.0, max(by_steps, by_time))


def lr_factor(schedule: ScheduleSpec, progress: float, step_frac: float = 0.0) -> float:
    """The factor on every peak learning rate: linear warm-up, constant, then the warm-down.

    `progress` is that at the start of a step, `step_frac` what the step adds. In the warm-up the end of the step
    counts and in the warm-down its start, so that neither the first step nor the last has the rate 0.
    """
    if progress + step_frac < schedule.warmup_frac:
        return (progress + step_frac) / schedule.warmup_frac
    remaining = 1.0 - progress
    if schedule.warmdown_frac == 0.0 or remaining >= schedule.warmdown_frac:
        return 1.0
    share = remaining / schedule.warmdown_frac
    if schedule.warmdown_shape == "cosine":
        share = 0.5 - 0.5 * math.cos(math.pi * share)
    return schedule.min_lr_frac + (1.0 - schedule.min_lr_frac) * share


def decay_factor(schedule: ScheduleSpec, progress: float, step_frac: float = 0.0) -> float:
    """The factor on every weight decay: 1, then linear to its end value; times the learning-rate factor if wanted."""
    start = schedule.decay_taper_start_frac
    done = max(0.0, progress - start) / (1.0 - start)
    taper = 1.0 - (1.0 - schedule.decay_end_frac) * done
    return taper * lr_factor(schedule, progress, step_frac) if schedule.decay_follows_lr else taper


def changes_decay(schedule: ScheduleSpec) -> bool:
    """Whether `decay_factor` is ever anything but 1."""
    return schedule.decay_follows_lr or schedule.decay_end_frac != 1.0


def muon_momentum(optimizer: OptimizerSpec, step: int) -> float:
    """Momentum at a step: linear from its start value over the warm-up steps, then constant."""
    if step >= optimizer.muon_momentum_warmup_steps:
        return optimizer.muon_momentum
    share = step / optimizer.muon_momentum_warmup_steps
    return (1.0 - share) * optimizer.muon_momentum_start + share * optimizer.muon_momentum


def step_hyperparameters(spec: Spec, step: int, progress: float, step_frac: float | None = None) -> StepNumbers:
    """The numbers one step needs; `step` counts from 0. Learning rates already carry the factor.

    The step begins with `progress` and adds `step_frac` to it, by default one of training.steps.
    """
    optimizer = spec.optimizer
    step_frac = 1.0 / spec.training.steps if step_frac is None else step_frac
    factor = lr_factor(spec.schedule, progress, step_frac)
    values = (
        optimizer.matrix_lr * factor,
        optimizer.embed_lr * factor,
        optimizer.head_lr * factor,
        optimizer.scalar_lr * factor,
        optimizer.adapter_lr * factor,
        muon_momentum(optimizer, step),
        1.0 - optimizer.adam_beta1 ** (step + 1),
        1.0 - optimizer.adam_beta2 ** (step + 1),
        decay_factor(spec.schedule, progress, step_frac),
        ema_rate(spec.training, step),
        float(takes_snapshot(spec.training, step, progress)),
    )
    optimizer_numbers = dict(zip(HYPERPARAMETERS, values, strict=True))
    return StepNumbers(stage_of(spec, step, progress), run_numbers(spec, step, progress), optimizer_numbers)
