"""Optimizers and schedules, once for both engines."""

from shared.optim.muon import Orthogonalise, orthogonalise
from shared.optim.schedule import (
    HYPERPARAMETERS,
    lr_factor,
    muon_momentum,
    progress_frac,
    step_hyperparameters,
)
from shared.optim.update import global_norm, initial_state, optimizer_step, partition_parameters, squared_norms

__all__ = [
    "HYPERPARAMETERS",
    "Orthogonalise",
    "global_norm",
    "initial_state",
    "lr_factor",
    "muon_momentum",
    "optimizer_step",
    "orthogonalise",
    "partition_parameters",
    "progress_frac",
    "squared_norms",
    "step_hyperparameters",
]
