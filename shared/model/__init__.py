"""The model, once for both engines: manifest, initial weights, forward pass, losses."""

from shared.model.forward import Forward, forward, log_probs, mean_nats, symbol_nats
from shared.model.initialise import initial_weights, random_weights
from shared.model.manifest import Parameter, QuantisationClass, parameter_counts, parameter_manifest
from shared.model.training_loss import symbol_weights, training_loss

__all__ = [
    "Forward",
    "Parameter",
    "QuantisationClass",
    "forward",
    "initial_weights",
    "log_probs",
    "mean_nats",
    "parameter_counts",
    "parameter_manifest",
    "random_weights",
    "symbol_nats",
    "symbol_weights",
    "training_loss",
]
