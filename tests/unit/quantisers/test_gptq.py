"""GPTQ: equal to the published form written out slowly, better than rounding, dead inputs and the order of columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ArtifactError
from shared.quantisers import InputStatistics
from shared.quantisers.gptq import DAMP_FRAC, error_on_inputs, feedback_factor, gptq, mean_gram
from tests.implementations import normal, seeds


class Grid:
    """Codes -7 to 7 with a step for each row, which notes the columns that it is asked for."""

    def __init__(self, steps_R: np.ndarray) -> None:
        self.steps_R, self.asked, self.importance = steps_R, [], []

    def __call__(self, values_R: np.ndarray, column: int, weight: float) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(column)
        self.importance.append(weight)
        codes = np.clip(np.rint(values_R / self.steps_R), -7, 7)
        return codes.astype(np.int32), codes * self.steps_R


def inputs(seed: int, count: int, columns: int) -> np.ndarray:
    """Correlated inputs of different sizes, float64 [count, columns]."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, columns)) @ rng.standard_normal((columns, columns)) / columns**0.5
    return (mixed + rng.standard_normal((count, columns))) * np.exp(rng.standard_normal(columns))


def published(weights: np.ndarray, gram: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Codes by the published form, one column at a time: U from the inverse of H, the error fed to what is left."""
    hessian, rest = gram.copy(), weights.astype(np.float64).copy()
    dead = np.diag(hessian) == 0
    hessian[dead, dead] = 1.0
    rest[:, dead] = 0.0
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(len(hessian))
    order = np.argsort(-np.diag(hessian), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(hessian[order][:, order])).T
    rest, codes = rest[:, order], np.zeros(weights.shape)
    for j in range(len(order)):
        codes[:, j] = np.clip(np.rint(rest[:, j] / steps), -7, 7)
        error = (rest[:, j] - codes[:, j] * steps) / upper[j, j]
        rest[:, j:] -= np.outer(error, upper[j, j:])
    return codes[:, np.argsort(order)]


@settings(max_examples=20)
@given(seed=seeds, rows=st.integers(1, 9), columns=st.integers(1, 300), dead=st.integers(0, 3))
def test_the_codes_are_those_of_the_published_form(seed: int, rows: int, columns: int, dead: int):
    x = inputs(seed, 2 * columns + 5, columns)
    x[:, np.random.default_rng(seed).integers(0, columns, dead)] = 0.0
    weights, gram = normal(seed, rows, columns), x.T @ x / len(x)
    steps = np.abs(weights).max(axis=1) / 7
    codes, decoded = gptq(weights, gram, Grid(steps))
    np.testing.assert_array_equal(codes, published(weights, gram, steps))
    np.testing.assert_array_equal(decoded, codes * steps[:, None])


@pytest.mark.parametrize("seed", range(5))
def test_outputs_are_nearer_than_with_rounding(seed: int):
    x, weights = inputs(seed, 400, 60), normal(seed, 30, 60)
    gram, steps = x.T @ x / 400, np.abs(weights).max(axis=1) / 7
    _, decoded = gptq(weights, gram, Grid(steps))
    rounded = np.rint(weights / steps[:, None]) * steps[:, None]
    of_gptq, of_rounding = (error_on_inputs(each - weights, gram) for each in (decoded, rounded))
    assert of_gptq < 0.85 * of_rounding
    assert of_rounding == pytest.approx(((x @ (rounded - weights).T) ** 2).sum() / 400)


def test_a_case_worked_by_hand():
    """Two inputs that are nearly the same: what the first column errs, the second gives back."""
    gram = np.array([[2.0, 1.0], [1.0, 1.0]])
    factor, importance, order = feedback_factor(gram)
    damp = DAMP_FRAC * 1.5
    assert order.tolist() == [0, 1]
    np.testing.assert_allclose(factor, [[1, 1 / (1 + damp)], [0, 1]])
    np.testing.assert_allclose(importance, [2 + damp - 1 / (1 + damp), 1 + damp])
    codes, _ = gptq(np.array([[0.4, 0.4]]), gram, Grid(np.ones(1)))
    assert codes.tolist() == [[0, 1]]  # 0.4 + 0.4 / 1.015


def test_columns_are_visited_by_falling_diagonal_and_ties_in_their_order():
    gram, weights = np.diag([1.0, 3.0, 0.0, 3.0, 2.0]), normal(0, 4, 5)
    grid = Grid(np.ones(4))
    codes, decoded = gptq(weights, gram, grid)
    assert grid.asked == [1, 3, 4, 0, 2]
    # Without correlations nothing is fed back, and the third input, which is always 0, has weights of 0.
    assert (codes[:, 2] == 0).all() and (decoded[:, 2] == 0).all()
    np.testing.assert_array_equal(np.delete(codes, 2, 1), np.delete(np.rint(weights), 2, 1))
    np.testing.assert_allclose(grid.importance, np.array([3, 3, 2, 1, 1]) + DAMP_FRAC * 2)
    in_turn = Grid(np.ones(4))
    gptq(weights, gram, in_turn, act_order=False)
    assert in_turn.asked == [0, 1, 2, 3, 4]


def test_only_a_matrix_with_counted_inputs_has_a_gram():
    gram = 6 * np.eye(3)
    np.testing.assert_array_equal(mean_gram(InputStatistics(2, gram), (5, 3)), 3 * np.eye(3))
    table = InputStatistics(reads=np.ones(5, np.int64))
    for statistics, shape in [(None, (5, 3)), (table, (5, 3)), (InputStatistics(2, gram), (4, 5, 3))]:
        assert mean_gram(statistics, shape) is None


@pytest.mark.parametrize("wrong", [np.full((2, 2), np.nan), -np.eye(2), np.array([[1.0, 9.0], [9.0, 1.0]])])
def test_what_is_no_gram_matrix_is_refused(wrong: np.ndarray):
    with pytest.raises(ArtifactError, match="not positive definite and finite"):
        gptq(np.ones((1, 2)), wrong, Grid(np.ones(1)))
    with pytest.raises(ArtifactError, match="statistics of 3 inputs for a matrix with 2"):
        gptq(np.ones((1, 2)), np.eye(3), Grid(np.ones(1)))
