"""Optimizers and schedules, once for both engines."""

from shared.optim.schedule import (
    HYPERPARAMETERS,
    lr_factor,
    muon_momentum,
    progress_frac,
    step_hyperparameters,
)
from shared.optim.update import global_norm, initial_state, optimizer_step, partition_parameters

__all__ = [
    "HYPERPARAMETERS",
    "global_norm",
    "initial_state",
    "lr_factor",
    "muon_momentum",
    "optimizer_step",
    "partition_parameters",
    "progress_frac",
    "step_hyperparameters",
]
