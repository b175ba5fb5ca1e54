"""The model, once for both engines: manifest, initial weights, forward pass, losses.

A forward pass reads in this order: forward, embedding, layer, trunk, block, attention, decoder.

The capitals at the end of a name are the axes of its array: x_BTD is [B, T, D].

    B batch           T time: symbols, and in a block the positions of its sequence
    N patches         P patch size
    D model width     H query heads     G key/value heads     C head width
    F MLP width       V vocabulary      K chunks of L positions and S state width, in recurrent mixers
"""

from shared.model.adapters import trained_parameters, with_adapters
from shared.model.auxiliary import auxiliary_parameters, model_weights, training_parameters
from shared.model.forward import Forward, forward, log_probs, mean_nats, symbol_nats
from shared.model.initialise import initial_weights, random_weights, reads_text, with_auxiliary
from shared.model.manifest import Parameter, QuantisationClass, parameter_counts, parameter_manifest
from shared.model.stepping import ModelStepper
from shared.model.training_loss import symbol_weights, training_loss

__all__ = [
    "Forward",
    "ModelStepper",
    "Parameter",
    "QuantisationClass",
    "auxiliary_parameters",
    "forward",
    "initial_weights",
    "log_probs",
    "mean_nats",
    "model_weights",
    "parameter_counts",
    "parameter_manifest",
    "random_weights",
    "reads_text",
    "symbol_nats",
    "symbol_weights",
    "trained_parameters",
    "training_loss",
    "training_parameters",
    "with_adapters",
    "with_auxiliary",
]
