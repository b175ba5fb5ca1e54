"""The state machines of trellis-coded codes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from shared.quantisers.trellis_states import TRELLISES, levels_of, quantisers_of

every_trellis = pytest.mark.parametrize("num_states", sorted(TRELLISES))


@every_trellis
def test_every_state_is_reached_by_two_and_leads_to_two(num_states: int) -> None:
    trellis = TRELLISES[num_states]
    assert trellis.num_states == num_states and trellis.next_state.shape == (num_states, 2)
    assert (trellis.next_state[:, 0] != trellis.next_state[:, 1]).all()
    assert np.bincount(trellis.next_state.reshape(-1), minlength=num_states).tolist() == [2] * num_states
    assert trellis.quantiser.sum() == num_states // 2


@every_trellis
def test_states_follow_the_parities_of_a_row(num_states: int) -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (5, 40)).astype(np.int8)
    trellis, expected = TRELLISES[num_states], np.zeros(codes.shape, np.uint8)
    for row, column in itertools.product(range(5), range(40)):
        state = 0
        for code in codes[row, :column]:
            state = int(trellis.next_state[state, int(code) % 2])
        expected[row, column] = trellis.quantiser[state]
    np.testing.assert_array_equal(quantisers_of(codes, num_states), expected)
    assert 0.3 < expected.mean() < 0.7


def test_without_states_there_is_one_quantiser() -> None:
    assert not quantisers_of(np.ones((2, 3), np.int8), 0).any()
    assert quantisers_of(np.ones((0, 3), np.int8), 4).shape == (0, 3)


def test_the_quantisers_have_even_levels_and_zero_with_odd_levels() -> None:
    codes = np.array([-127, -2, -1, 0, 1, 2, 127], np.int8)
    assert levels_of(codes, np.zeros(7, np.uint8)).tolist() == [-254, -4, -2, 0, 2, 4, 254]
    assert levels_of(codes, np.ones(7, np.uint8)).tolist() == [-253, -3, -1, 0, 1, 3, 253]


@every_trellis
def test_the_best_path_has_the_gain_of_the_trellis(num_states: int) -> None:
    """About 1 dB over one quantiser of the same step, on a uniform source: a wrong transition loses most of it."""
    levels = np.random.default_rng(1).uniform(-100, 100, (300, 200))
    trellis = TRELLISES[num_states]
    cost = np.full((300, num_states), np.inf)
    cost[:, 0] = 0
    for column in levels.T:
        best = np.full_like(cost, np.inf)
        for state, parity in itertools.product(range(num_states), (0, 1)):
            codes = np.arange(-127 + (1 - parity), 128, 2, dtype=np.int8)
            assert (codes & 1 == parity).all()
            values = levels_of(codes, np.full(len(codes), trellis.quantiser[state]))
            error = np.abs(column[:, None] - values).min(1) ** 2
            to = trellis.next_state[state, parity]
            best[:, to] = np.minimum(best[:, to], cost[:, state] + error)
        cost = best
    gain_db = 10 * np.log10(4 / 12 / (cost.min(1).mean() / levels.shape[1]))
    assert gain_db == pytest.approx({4: 0.99, 8: 1.08}[num_states], abs=0.03)
