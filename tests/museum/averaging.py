"""Choices and averages that were not what they were said to be: planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from data.selection import selection_windows
from data.stream import SymbolStream
from shared.engine.protocol import StepResult, WeightsKind
from shared.engine.state import EngineState
from shared.model.stages import StepNumbers
from shared.spec import Spec
from shared.study.soup import Selection


def forget_snapshots(engine: EngineState) -> None:
    """Snapshots go on being collected, but the averaged weights are the EMA alone, or the trained weights."""

    def weights(kind: WeightsKind) -> dict[str, Any]:
        if kind == "averaged" and engine.spec.training.ema_decay > 0:
            return {name: engine.state[f"average/{name}"] for name in engine.params}
        return engine.params

    engine._weights = weights  # type: ignore[method-assign]


def start_at_the_initial_weights(engine: EngineState) -> None:
    """An EMA with the same rate 1 - d from the first step on: after t steps d^t of it are the initial weights."""
    train_step = engine.train_step  # type: ignore[attr-defined]
    decay = engine.spec.training.ema_decay

    def with_one_rate(x: np.ndarray, numbers: StepNumbers) -> StepResult:
        result: StepResult = train_step(
            x, replace(numbers, optimizer={**numbers.optimizer, "average_rate": 1.0 - decay})
        )
        return result

    engine.train_step = with_one_rate  # type: ignore[attr-defined]


def choose_by_validation(spec: Spec, heldout: SymbolStream) -> Selection:
    """Members of a soup weighed by their score on the text that the soup is scored on."""
    return Selection(heldout.name, heldout.sha256, selection_windows(spec, heldout))
