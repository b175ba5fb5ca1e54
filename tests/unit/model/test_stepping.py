"""What a step costs, whatever lies behind it: by counts of operations, not seconds."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from shared.model import ModelStepper, forward, random_weights
from shared.ops import NumpyOps
from shared.spec import Spec, load_spec
from tests.techniques import TECHNIQUES


class CountingOps(NumpyOps):
    """The oracle's operations, which count the calls of each and the weights that are multiplied, once for each row."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not callable(value) or name.startswith("_"):
            return value

        def counted(*arguments: Any, **named: Any) -> Any:
            self.counts[name] += 1
            return value(*arguments, **named)

        return counted

    def linear(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        self.counts["products"] += x.size * len(weight)
        return super().linear(x, weight)

    def leaky_relu_squared_mlp(
        self, x: np.ndarray, up: np.ndarray, down: np.ndarray, negative_slope: float
    ) -> np.ndarray:
        self.counts["products"] += 2 * x.size * len(up)
        return super().leaky_relu_squared_mlp(x, up, down, negative_slope)


def oracle_params(spec: Spec) -> dict[str, np.ndarray]:
    return {name: NumpyOps().asarray(value) for name, value in random_weights(spec, 0).items()}


def counts_of_patches(spec: Spec, rows: int = 1) -> list[list[Counter[str]]]:
    """The counts of each step, patch by patch: of the last one of a patch, and of those inside the next."""
    ops, patch_size, counts = CountingOps(), spec.model.patch_size, []
    stepper = ModelStepper(ops, spec, oracle_params(spec), rows)
    stepper.start(np.zeros((rows, patch_size - 1), np.int32))
    for position in range(patch_size, spec.model.seq_len):
        ops.counts = Counter()
        stepper.advance(np.full(rows, position % spec.vocabulary.size, np.int32))
        counts.append(ops.counts)
    return [counts[first : first + patch_size] for first in range(0, len(counts), patch_size)]


@pytest.mark.parametrize("overrides", TECHNIQUES.values(), ids=TECHNIQUES)
def test_every_patch_costs_the_same(overrides: list[str]) -> None:
    # The first one is walked through and recorded; what later ones cost is known to the operation.
    recorded, *patches = counts_of_patches(load_spec("tiny", overrides))
    assert len(patches) > 5 and all(patch == patches[0] for patch in patches)
    assert sum(recorded[0].values()) > sum(patches[0][0].values())
    # The trunk moves with the last symbol of a patch, the decoder with each.
    last, *inside = patches[0]
    assert all(step == inside[0] and step["products"] < last["products"] for step in inside)


def test_a_patch_costs_its_share_of_a_window() -> None:
    spec, rows, ops = load_spec("tiny", ["model.decoder.context=3"]), 3, CountingOps()
    forward(ops, spec, oracle_params(spec), np.zeros((rows, spec.model.seq_len), np.int32))
    # At its second patch.
    stepped = sum(step["products"] for step in counts_of_patches(spec, rows)[1])
    assert stepped == ops.counts["products"] / spec.model.num_patches
