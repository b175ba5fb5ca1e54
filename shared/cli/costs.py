"""What storing each tensor of a run costs, for `inspect --loss` and `report --loss`."""

from __future__ import annotations

import math

import numpy as np

from shared.artifact import Artifact
from shared.artifact.inspection import Costs
from shared.artifact.sensitivity import Divergence, measure_sensitivities
from shared.cli.command import console
from shared.cli.scoring import progress_bar
from shared.engine.package import make_scorer_of
from shared.runs.target import Target
from shared.training.calibration import calibration_windows
from shared.training.sources import open_training_text

# Eight windows of 1,024 symbols: the cost of a tensor is then known to some 5 %.
COST_SYMBOLS = 8192


def measure_costs(engine: str, artifact: Artifact, floats: Target, symbols: int = COST_SYMBOLS) -> Costs:
    """The costs of an artifact's tensors against the float weights behind it, one pass over the text for each. Raises
    DataError where the training text is missing."""
    text = open_training_text(floats.spec)
    windows = calibration_windows(floats.spec, text)
    windows = windows[: -(-symbols // windows.shape[1])]
    scorer_of = make_scorer_of(engine, floats.spec)
    stored = {
        name: values
        for name, values in artifact.weights.items()
        if name in floats.weights and not np.array_equal(values, floats.weights[name])
    }
    bits = text.num_symbols / text.num_bytes / math.log(2.0)
    with progress_bar(console(), "storing one tensor at a time", "tensors") as progress:
        divergence = Divergence(scorer_of, floats.weights, windows)
        alone = measure_sensitivities(divergence, stored, progress=progress)
    by_tensor = {name: bits * each.nats for name, each in alone.items()}
    return Costs(by_tensor, bits * divergence.of(stored), divergence.symbols, text.name)
