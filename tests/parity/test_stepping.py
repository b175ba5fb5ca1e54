"""Symbol by symbol, every random spec gives the distributions that its windows have."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.engine.oracle import Oracle
from shared.engine.package import make_ops
from shared.engine.protocol import Scorer
from shared.engine.registry import ENGINES
from shared.engine.synthetic import comparison_weights, synthetic_engine
from shared.model import ModelStepper
from shared.parity.function_checks import logit_rows, rounding_of_logits
from shared.parity.trace import trace_forward
from shared.spec import Spec
from shared.tolerances import ORACLE_STEPS_ABS
from tests.implementations import examples
from tests.parity.test_random_specs import random_symbols, specs

begun = st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=1, max_size=3)
random_specs = settings(examples, suppress_health_check=[HealthCheck.too_slow])


def stepped(scorer: Scorer, x: np.ndarray, begun_at: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """(positions [n], ln p there [B, n, V]) of windows x [B, T], begun anew at each share of T."""
    stepper = scorer.stepper(len(x))
    assert isinstance(stepper, ModelStepper)
    positions, found = [], []
    for share in begun_at:
        first = int(share * x.shape[1])
        found.append(stepper.start(x[:, :first]))
        found += [stepper.advance(x[:, position]) for position in range(first, x.shape[1] - 1)]
        positions += range(first, x.shape[1])
    return np.array(positions), np.stack(found, axis=1)


@pytest.mark.slow
@settings(random_specs, max_examples=60)
@given(spec=specs(), seed=st.integers(0, 2**16), rows=st.integers(1, 3), begun_at=begun)
def test_the_oracle_steps_as_it_scores(spec: Spec, seed: int, rows: int, begun_at: list[float]) -> None:
    oracle, x = Oracle(spec, comparison_weights(spec, seed)), random_symbols(spec, rows, np.random.default_rng(seed))
    positions, found = stepped(oracle, x, begun_at)
    assert found.dtype == np.float64
    assert np.abs(found - oracle.log_probs(x)[:, positions]).max() <= ORACLE_STEPS_ABS


@pytest.mark.parametrize("name", list(ENGINES))
@settings(random_specs, max_examples=8)
@given(spec=specs(), seed=st.integers(0, 2**16), rows=st.integers(1, 2), begun_at=begun)
def test_engines_step_as_the_oracle_scores(name: str, spec: Spec, seed: int, rows: int, begun_at: list[float]) -> None:
    weights, x = comparison_weights(spec, seed), random_symbols(spec, rows, np.random.default_rng(seed))
    engine = synthetic_engine(name, spec)
    engine.initialise(weights)
    positions, found = stepped(engine, x, begun_at)
    assert found.dtype == np.float32
    outputs = {"numpy": Oracle(spec, weights).log_probs(x)[:, positions], name: found}
    rounding = partial(rounding_of_logits, spec, weights, x)
    rows_of_logits = logit_rows(outputs, lambda name: trace_forward(make_ops(name), spec, weights, x), rounding)
    assert [row for row in rows_of_logits if not row.passed] == []
