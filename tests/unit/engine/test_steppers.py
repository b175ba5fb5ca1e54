"""Steps of one symbol: what they give is what is scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.engine.leader import LeadingEngine
from shared.engine.oracle import Oracle
from shared.engine.ranks import OneRank
from shared.engine.window_stepper import WindowStepper
from shared.model import ModelStepper, forward, random_weights
from shared.ops import Array, Ops
from shared.spec import Spec, load_spec

SPEC = load_spec("tiny", ["model.num_layers=1"])


@pytest.mark.slow
@given(rows=st.integers(1, 3), begun=st.lists(st.integers(0, 63), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_a_window_computed_again_gives_the_scored_distributions(rows: int, begun: list[int], seed: int) -> None:
    """Several windows one after the other, the first symbols of each given at once."""
    oracle, rng = Oracle(SPEC, random_weights(SPEC, 0)), np.random.default_rng(seed)
    stepper = WindowStepper(oracle, rows)
    for length in begun:
        x = rng.integers(0, 256, (rows, SPEC.model.seq_len)).astype(np.int32)
        scored = oracle.log_probs(x)
        np.testing.assert_allclose(stepper.start(x[:, :length]), scored[:, length], rtol=0, atol=1e-10)
        for position in range(length + 1, min(length + 4, SPEC.model.seq_len)):
            found = stepper.advance(x[:, position - 1])
            np.testing.assert_allclose(found, scored[:, position], rtol=0, atol=1e-10)


def test_a_window_never_exceeds_its_length() -> None:
    stepper = Oracle(SPEC, random_weights(SPEC, 0)).stepper(1)
    stepper.start(np.zeros((1, SPEC.model.seq_len - 1), np.int32))
    with pytest.raises(AssertionError):
        stepper.advance(np.zeros(1, np.int32))


def test_another_forward_pass_is_computed_by_windows() -> None:
    """Only the house's own can be taken apart into steps."""

    def softer(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
        return 0.5 * forward(ops, spec, params, x)

    oracle, x = Oracle(SPEC, random_weights(SPEC, 0), softer), np.arange(6, dtype=np.int32)[None]
    stepper = oracle.stepper(1)
    assert isinstance(stepper, WindowStepper) and isinstance(Oracle(SPEC, oracle.params).stepper(1), ModelStepper)
    stepper.start(x[:, :5])
    padded = np.concatenate([x, x[:, :2]], axis=1)
    np.testing.assert_allclose(stepper.advance(x[:, 5]), oracle.log_probs(padded)[:, 6], rtol=0, atol=1e-10)


def test_rank_0_steps_alone() -> None:
    class Silent(OneRank):
        def broadcast(self, message: bytes) -> bytes:
            raise AssertionError("a follower was told")

    engine: Any = Oracle(SPEC, random_weights(SPEC, 0))
    engine.ranks, engine.name, engine.compiles = Silent(), "numpy", False
    x = np.zeros((2, 3), np.int32)
    np.testing.assert_array_equal(LeadingEngine(engine).stepper(2).start(x), engine.stepper(2).start(x))
