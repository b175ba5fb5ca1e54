"""Optimizers and schedules, once for both engines."""

from shared.optim.averaging import averaged_weights, keeps_average
from shared.optim.newton_schulz import Orthogonalise, orthogonalise
from shared.optim.schedule import HYPERPARAMETERS, lr_factor, muon_momentum, progress_frac, step_hyperparameters
from shared.optim.update import (
    WEIGHTS,
    by_muon,
    global_norm,
    initial_state,
    optimizer_groups,
    optimizer_step,
    partition_parameters,
    squared_norms,
    state_bytes,
    state_shapes,
)

__all__ = [
    "HYPERPARAMETERS",
    "WEIGHTS",
    "Orthogonalise",
    "averaged_weights",
    "by_muon",
    "global_norm",
    "initial_state",
    "keeps_average",
    "lr_factor",
    "muon_momentum",
    "optimizer_groups",
    "optimizer_step",
    "orthogonalise",
    "partition_parameters",
    "progress_frac",
    "squared_norms",
    "state_bytes",
    "state_shapes",
    "step_hyperparameters",
]
