"""Codes of a trellis: the path is the best there is, feedback helps, and parts are what the artifact stores."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from shared.artifact import range_codec
from shared.artifact.budget import entropy_bits
from shared.quantisers import InputStatistics, Uniform, quantiser_of
from shared.quantisers.gptq import error_on_inputs, feedback_factor
from shared.quantisers.protocol import QuantisedTensor
from shared.quantisers.pruning import Pruning
from shared.quantisers.trellis import BLOCK_COLUMNS, BLOCK_ROWS, best_codes
from shared.quantisers.trellis_states import MAX_TRELLIS_COLUMNS, TRELLISES, levels_of, quantisers_of
from shared.spec import QuantiserSpec
from shared.tolerances import GAUSSIAN_CODE_BITS_ABS, HALF_STEP_REL
from tests.implementations import normal

every_trellis = pytest.mark.parametrize("states", sorted(TRELLISES))

LIMIT = 3


def gram(seed: int, size: int) -> np.ndarray:
    """The mean product of inputs that are correlated and of different sizes."""
    mixed = np.eye(size) + normal(seed, size, size) / np.sqrt(size)
    inputs = normal(seed + 1, 4 * size, size).astype(np.float64) @ mixed * np.exp(normal(seed + 2, size) / 2)
    return np.asarray(inputs.T @ inputs / len(inputs))


def decoded(codes: np.ndarray, steps: np.ndarray, states: int) -> np.ndarray:
    return levels_of(codes, quantisers_of(codes, states)) * steps / 2


def greedy(weights: np.ndarray, steps: np.ndarray, states: int) -> np.ndarray:
    """The nearest level of the state that the codes before it led to."""
    trellis, codes = TRELLISES[states], np.zeros(weights.shape, np.int8)
    all_codes = np.arange(-LIMIT, LIMIT + 1, dtype=np.int8)
    for row, state in zip(range(len(weights)), np.zeros(len(weights), int), strict=True):
        for column in range(weights.shape[1]):
            levels = levels_of(all_codes, np.full(len(all_codes), trellis.quantiser[state]))
            nearest = np.abs(levels * steps[row, column] / 2 - weights[row, column]).argmin()
            codes[row, column] = all_codes[nearest]
            state = trellis.next_state[state, codes[row, column] & 1]
    return codes


@every_trellis
def test_no_row_of_codes_is_nearer(states: int):
    """Against all rows of five codes of -3 to 3, with steps that differ by weight; near zero and beyond the codes."""
    weights = np.linspace(0.3, 2.0, 40)[:, None] * normal(states, 40, 5).astype(np.float64)
    steps = np.exp(normal(1, 40, 5).astype(np.float64) / 4)
    every = np.array(list(itertools.product(range(-LIMIT, LIMIT + 1), repeat=5)), np.int8)
    levels = levels_of(every, quantisers_of(every, states)) / 2
    errors = ((levels[:, None] * steps - weights) ** 2).sum(-1).min(0)
    found = best_codes(weights, steps, states, LIMIT, rate=0.0)
    assert np.abs(found).max() == LIMIT
    np.testing.assert_allclose(((decoded(found, steps, states) - weights) ** 2).sum(1), errors, rtol=1e-12)


@every_trellis
def test_a_path_is_better_than_one_code_after_the_other(states: int):
    weights, steps = normal(2, 20, 60).astype(np.float64), np.full((20, 60), 0.7)
    lost = [
        ((decoded(codes, steps, states) - weights) ** 2).sum()
        for codes in (best_codes(weights, steps, states, LIMIT, rate=0.0), greedy(weights, steps, states))
    ]
    assert lost[0] < 0.8 * lost[1]


@every_trellis
def test_a_price_of_bits_saves_more_than_it_costs(states: int):
    weights, steps = normal(3, 300, 200).astype(np.float64), np.full((300, 200), 0.9)
    measured = []
    for codes in (best_codes(weights, steps, states, 127, rate=rate) for rate in (0.0, 0.1)):
        bits = 8 * len(range_codec.encode([codes], [states])) / codes.size
        measured.append(((decoded(codes, steps, states) - weights) ** 2).mean() * 4**bits)
    plain = np.rint(weights / steps).astype(np.int8)
    bits = 8 * len(range_codec.encode([plain], [0])) / plain.size
    without = ((plain * steps - weights) ** 2).mean() * 4**bits
    # A bit more divides an error by four. 0.82 and 0.77 were measured for 8 states.
    assert measured[1] < measured[0] < 0.87 * without


@every_trellis
def test_feedback_of_every_survivor_is_that_of_its_own_path(states: int):
    """What is left of the error on the inputs is what a trellis leaves without feedback, and blocks of rows change
    no code."""
    rows, columns = BLOCK_ROWS + 5, 2 * BLOCK_COLUMNS + 7
    weights, inputs = normal(4, rows, columns).astype(np.float64), gram(5, columns)
    triangle, importance, order = feedback_factor(inputs, act_order=False)
    np.testing.assert_array_equal(order, np.arange(columns))
    steps = np.broadcast_to(0.2 / np.sqrt(importance / np.exp(np.log(importance).mean())), weights.shape)
    fed = best_codes(weights, steps, states, 127, (triangle, importance), rate=0.0)
    alone = best_codes(weights, steps, states, 127, rate=0.0)
    lost = [error_on_inputs(decoded(codes, steps, states) - weights, inputs) for codes in (fed, alone)]
    assert lost[0] < 0.7 * lost[1]
    # With steps of 1 / sqrt(D) it is D step^2 / 12 for each weight, less a fifth by the trellis. Damping adds to D.
    share = lost[0] / (weights.size * importance[0] * steps[0, 0] ** 2 / 12)
    assert 0.6 < share < 0.85
    some = slice(BLOCK_ROWS - 2, BLOCK_ROWS + 2)
    np.testing.assert_array_equal(
        best_codes(weights[some], steps[some], states, 127, (triangle, importance), 0.0), fed[some]
    )


@every_trellis
def test_without_correlations_feedback_changes_no_code(states: int):
    weights, steps = normal(6, 30, 70).astype(np.float64), np.full((30, 70), 0.5)
    fed = best_codes(weights, steps, states, 127, (np.eye(70), np.ones(70)))
    np.testing.assert_array_equal(fed, best_codes(weights, steps, states, 127))


@every_trellis
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 50), (50, 7), (3, 4, 20)])
def test_parts_decode_to_levels_of_half_steps(rounding: Any, shape: tuple[int, ...], states: int):
    stored = Uniform(0.4, rounding, trellis=states)
    weights = normal(7, *shape)
    parts = stored.encode(weights, InputStatistics(100, 100 * gram(8, shape[-1])))
    for part in stored.parts(shape):
        assert parts[part.name].dtype == part.dtype and parts[part.name].shape == part.shape
    assert stored.is_valid(parts)
    codes = parts["codes"].reshape(-1, shape[-1])
    steps = stored.steps(shape, parts).reshape(codes.shape).astype(np.float64)
    by_hand = decoded(codes, steps, states).reshape(shape)
    np.testing.assert_allclose(stored.decode(shape, parts), by_hand, rtol=HALF_STEP_REL, atol=0)
    # Two levels of one parity are two steps apart, so no path has to miss by more than one.
    if rounding == "nearest":
        assert np.abs(by_hand - weights).max() <= 1.5 * parts["steps"][0]


def test_the_tensor_table_says_how_to_decode():
    assert Uniform(0.3, "gptq", trellis=8).stored_settings == {"method": "uniform", "rounding": "gptq", "trellis": 8}
    assert Uniform(0.3, "gptq", trellis=4).settled((3, 4, 5), None).stored_settings == {
        "method": "uniform",
        "trellis": 4,
    }
    assert not Uniform(0.3, trellis=4).has_surrogate and Uniform(0.3).has_surrogate


def test_codes_of_a_trellis_are_not_pruned():
    """A code of another parity would change the meaning of all after it."""
    tensors = {}
    for states in (0, 8):
        stored = Uniform(0.5, trellis=states)
        tensors[str(states)] = QuantisedTensor(stored, (20, 30), stored.encode(normal(9, 20, 30)))
    pruned = Pruning(tensors).pruned(Pruning(tensors).count)
    np.testing.assert_array_equal(pruned["8"].parts["codes"], tensors["8"].parts["codes"])
    assert Pruning(tensors).count == (np.abs(tensors["0"].parts["codes"]) == 1).sum() > 0


def test_zeros_and_weights_beyond_all_codes():
    for rounding in ("nearest", "gptq"):
        stored, found = Uniform(0.1, rounding, trellis=8), InputStatistics(100, 100 * gram(1, 40))  # type: ignore[arg-type]
        zeros = np.zeros((4, 40), np.float32)
        assert not stored.decode((4, 40), stored.encode(zeros, found)).any()
        weights = normal(5, 30, 40)
        weights[3, 4] = 900.0
        assert abs(stored.decode((30, 40), stored.encode(weights, found))[3, 4] / 900.0 - 1) < 0.2


def test_bad_parts_are_found_and_any_codes_decode():
    stored = Uniform(0.3, trellis=8)
    good = dict(stored.encode(normal(1, 4, 5)))
    for name, value in (("steps", np.nan), ("steps", -1.0), ("codes", -128)):
        assert not stored.is_valid(good | {name: np.full_like(good[name], value)})
    extreme = good | {"codes": np.full_like(good["codes"], -127)}
    assert stored.is_valid(extreme) and np.isfinite(stored.decode((4, 5), extreme)).all()


def test_rows_too_long_for_a_trellis_have_none():
    settings = QuantiserSpec(method="uniform", trellis=8)
    said = [
        quantiser_of(settings, (1, columns)).stored_settings.get("trellis")
        for columns in (MAX_TRELLIS_COLUMNS, MAX_TRELLIS_COLUMNS + 1)
    ]
    assert said == [8, None]


@every_trellis
@pytest.mark.parametrize("step", [0.15, 0.3, 0.6, 1.0])
def test_predicted_bits_are_those_of_gaussian_codes(states: int, step: float):
    stored = Uniform(step, trellis=states)
    codes = stored.encode(normal(3, 400, 400))["codes"]
    assert abs(stored.gaussian_code_bits(400) - entropy_bits(codes)) < 5 * GAUSSIAN_CODE_BITS_ABS
