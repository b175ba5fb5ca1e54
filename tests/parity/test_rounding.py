"""How far logits may differ is asked of the function itself where it multiplies rounding."""

from __future__ import annotations

import numpy as np
import pytest

from shared.engine.oracle import Oracle
from shared.engine.synthetic import comparison_weights
from shared.parity.function_checks import logit_rows, nats_rows, rounding_of_logits
from shared.spec import load_spec
from shared.tolerances import LOGITS_ABS, LOGITS_OVER_ROUNDING, NATS_ABS


def rounding_with(*overrides: str) -> float:
    spec = load_spec("tiny", [*overrides])
    x = np.random.default_rng(0).integers(0, 256, (2, spec.model.seq_len)).astype(np.int32)
    return rounding_of_logits(spec, comparison_weights(spec, 1), x)


def test_sharp_attention_multiplies_rounding() -> None:
    plain, sharp = rounding_with("model.q_gain_init=1.0"), rounding_with("model.q_gain_init=8.0")
    assert 0.0 < plain < sharp < 1e-4


def test_rounding_is_that_of_float32() -> None:
    """Casting the weights to float32 and back changes nothing; moving them by half a step changes what one may."""
    spec = load_spec("tiny", ["model.num_layers=1"])
    weights = comparison_weights(spec, 1)
    x = np.random.default_rng(0).integers(0, 256, (1, spec.model.seq_len)).astype(np.int32)
    doubles = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    assert np.array_equal(Oracle(spec, doubles).log_probs(x), Oracle(spec, weights).log_probs(x))
    assert rounding_of_logits(spec, doubles, x) == rounding_of_logits(spec, weights, x) > 0.0


@pytest.mark.parametrize(
    ("difference", "rounding", "passed"),
    [
        (0.9 * LOGITS_ABS, 0.0, True),
        (1.5 * LOGITS_ABS, LOGITS_ABS / LOGITS_OVER_ROUNDING, False),
        (1.5 * LOGITS_ABS, 2.0 * LOGITS_ABS / LOGITS_OVER_ROUNDING, True),
        (2.5 * LOGITS_ABS, 2.0 * LOGITS_ABS / LOGITS_OVER_ROUNDING, False),
        (float("nan"), 1.0, False),
    ],
)
def test_the_limit_is_the_larger_of_the_two(difference: float, rounding: float, passed: bool) -> None:
    """A difference is wrong for a function that rounds little and right for one that rounds much."""
    one = np.zeros((1, 2, 4))
    other = one.copy()
    other[0, 1] = [difference, -difference, 0.0, 0.0]
    (row,) = logit_rows({"numpy": one, "mlx": other}, lambda name: [], lambda: rounding)
    assert row.passed == passed
    nats = {"numpy": one[..., 0], "mlx": NATS_ABS / LOGITS_ABS * other[..., 0]}
    assert nats_rows(nats, lambda: rounding)[0].passed == passed


def test_rounding_is_not_asked_for_without_need() -> None:
    def never() -> float:
        raise AssertionError("asked")

    same = np.zeros((1, 2, 4))
    assert logit_rows({"numpy": same, "mlx": same}, lambda name: [], never)[0].tolerance == LOGITS_ABS
