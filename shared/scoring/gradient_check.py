"""Checks that a gradient reaches everything that is trained (docs/techniques.md 12.2).

Published systems had pairs of factors that both start at zero: the gradient of each is a product with the other, so
both stay zero for good, and the gain claimed for them was none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shared.engine.protocol import Engine, NonFiniteError, Weights
from shared.engine.synthetic import synthetic_engine, synthetic_loader, synthetic_start
from shared.model import trained_parameters
from shared.optim import step_hyperparameters
from shared.scoring.checks import Check
from shared.spec import Spec
from shared.spec.reduced import reduced_spec, with_training
from shared.tolerances import GRADIENT_ZERO_REL

# A head of zeros learns in the first step, an output projection behind it in the second, its input in the third, and
# behind an adapter's zero factor it takes one more.
GRADIENT_STEPS = 5
TEXT_SEED = 4
# Names that a message lists.
SHOWN = 4


def check_gradients(engine: Engine, weights: Weights, batches: Sequence[np.ndarray]) -> Check:
    """From `weights` on, everything that is trained has a gradient before one of the steps on `batches`, or after them.

    The engine's weights are changed.
    """
    engine.initialise(weights)
    silent = [parameter.name for parameter in trained_parameters(engine.spec)]
    try:
        for step, x in enumerate([*batches, batches[0]]):
            gradients = engine.gradients(x)[1]
            silent = [name for name in without_gradient(gradients) if name in silent]
            if not silent or step == len(batches):
                break
            # Half way, where no schedule's learning rate is zero.
            engine.train_step(x, step_hyperparameters(engine.spec, step, 0.5))()
    except NonFiniteError as error:
        return Check("gradients", False, 1.0, 0.0, str(error))
    more = f" and {len(silent) - SHOWN} more" if len(silent) > SHOWN else ""
    detail = "everything that is trained has a gradient"
    if silent:
        detail = f"no gradient within {len(batches)} steps: {', '.join(silent[:SHOWN])}{more}"
    return Check("gradients", not silent, float(len(silent)), 0.0, detail)


def without_gradient(gradients: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the gradients that are zero but for rounding."""
    largest = {name: float(np.abs(gradient).max(initial=0.0)) for name, gradient in gradients.items()}
    limit = GRADIENT_ZERO_REL * max(largest.values(), default=0.0)
    return [name for name, value in largest.items() if not value > limit]


def check_spec_gradients(spec: Spec, engine_name: str) -> Check:
    """The check of a spec's initial weights, at full width and depth on short windows of synthetic text."""
    small, _ = reduced_spec(spec, GRADIENT_STEPS)
    # The process may have an engine of the spec already, and MLX multiplies in one way for all of them.
    small = with_training(small, float32_products=spec.training.float32_products)
    loader = synthetic_loader(small, TEXT_SEED)
    batches = [loader.batch(step) for step in range(GRADIENT_STEPS)]
    return check_gradients(synthetic_engine(engine_name, small), synthetic_start(small), batches)
