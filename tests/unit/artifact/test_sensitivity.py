"""The measured cost of stored weights: the divergence, the error it belongs to, and what is predicted from both."""

from __future__ import annotations

import numpy as np
import pytest

from shared.artifact.curvature import MOST_ROWS, curved_tensors, loss_curvature
from shared.artifact.sensitivity import Divergence, Sensitivity, measure_sensitivities, stored_error
from shared.engine.package import make_scorer_of
from shared.model import random_weights
from shared.quantisers import Curvature, InputStatistics, RowMax
from shared.spec import Spec, load_spec
from tests.implementations import normal

SPEC = load_spec("tiny", ["training.compile=false", "evaluation.batch_symbols=128"])
NAMES = ("layers.0.mlp.up_proj.weight", "layers.1.attn.v_proj.weight")


def windows_of(spec: Spec, count: int = 3) -> np.ndarray:
    rng = np.random.default_rng(2)
    return rng.integers(0, spec.vocabulary.size, (count, spec.model.seq_len)).astype(np.int32)


@pytest.fixture(scope="module")
def divergence() -> Divergence:
    return Divergence(make_scorer_of("numpy", SPEC), random_weights(SPEC, 1), windows_of(SPEC))


def test_the_divergence_is_that_of_its_definition(divergence: Divergence) -> None:
    changed = {NAMES[0]: np.zeros_like(divergence.weights[NAMES[0]])}
    p, q = (
        make_scorer_of("numpy", SPEC)(weights).log_probs(windows_of(SPEC)).astype(np.float64)
        for weights in (divergence.weights, {**divergence.weights, **changed})
    )
    expected = (np.exp(p) * (p - q)).sum(axis=-1).mean()
    assert len(divergence.batches) > 1, "the windows should take more than one pass"
    assert expected > 1e-4 and divergence.of(changed) == pytest.approx(expected, rel=1e-3)
    assert divergence.of({}) == 0.0


def test_the_cost_grows_with_the_square_of_the_error_and_adds_up(divergence: Divergence) -> None:
    weights = divergence.weights
    decoded = {name: RowMax(6).decode(weights[name].shape, RowMax(6).encode(weights[name])) for name in NAMES}
    halfway = {name: (weights[name] + decoded[name]) / 2 for name in NAMES}
    found = measure_sensitivities(divergence, decoded)
    for name in NAMES:
        predicted = found[name].predicted_nats(stored_error(weights[name], halfway[name]))
        assert predicted == pytest.approx(found[name].nats / 4, rel=1e-3)
        assert divergence.of({name: halfway[name]}) == pytest.approx(predicted, rel=0.1)
    assert divergence.of(decoded) == pytest.approx(sum(found[name].nats for name in NAMES), rel=0.25)


def test_what_is_stored_exactly_costs_nothing(divergence: Divergence) -> None:
    found = measure_sensitivities(divergence, {NAMES[0]: divergence.weights[NAMES[0]]})
    assert found == {NAMES[0]: Sensitivity(0.0, 0.0)} and found[NAMES[0]].predicted_nats(1.0) == 0.0


def test_an_error_is_the_mean_squared_change_of_what_is_read() -> None:
    weights, x = normal(0, 6, 5), normal(1, 40, 5).astype(np.float64)
    stored = np.round(weights * 2) / 2
    of_inputs = InputStatistics(rows=40, gram=x.T @ x)
    outputs = x @ stored.T.astype(np.float64) - x @ weights.T.astype(np.float64)
    assert stored_error(weights, stored, of_inputs) == pytest.approx(np.square(outputs).sum(axis=1).mean(), rel=1e-6)
    reads = np.array([0, 3, 0, 0, 1, 0])
    read = np.square(stored - weights).sum(axis=1)[[1, 1, 1, 4]].mean()
    assert stored_error(weights, stored, InputStatistics(reads=reads)) == pytest.approx(float(read), rel=1e-6)
    for nothing in (None, InputStatistics()):
        assert stored_error(weights, stored, nothing) == pytest.approx(np.square(stored - weights).sum(), rel=1e-6)
    g = normal(2, 30, 6).astype(np.float64)
    curved = InputStatistics(40, x.T @ x, curvature=Curvature(x.T @ x, g.T @ g))
    moved = np.square(g @ (stored - weights).astype(np.float64) @ x.T).sum() / np.square(g).sum()
    assert stored_error(weights, stored, curved) == pytest.approx(float(moved), rel=1e-6)
    unreached = InputStatistics(40, x.T @ x, curvature=Curvature(x.T @ x, np.zeros((6, 6))))
    assert stored_error(weights, stored, unreached) == stored_error(weights, stored, of_inputs)


def test_only_what_is_rounded_by_the_curvature_is_measured() -> None:
    """The products of the rows of a table with each other took 19 GB for 32,768 rows, and three times 0.5 GB and most
    of the packing of a small model for 8,192 rows that are stored otherwise."""
    tables = ("model.ngram.reader=decoder", "model.ngram.dim=2", "model.ngram.longest=2")
    table, matrix = "ngram_embed.tables.2.weight", "ngram_embed.proj.weight"
    of_all = [
        f"artifact.{part}.{key}" for part in ("matrix", "embed") for key in ("method=uniform", "rounding=two_sided")
    ]
    for rows, words, measured in (
        (MOST_ROWS + 1, of_all, {matrix}),
        (97, of_all, {matrix, table}),
        (97, of_all[:2], {matrix}),
        (97, [*of_all, "artifact.tensors=[{pattern='*tables*'}]"], {matrix}),
        (97, [], set()),
    ):
        found = curved_tensors(load_spec("tiny", [*tables, f"model.ngram.rows={rows}", *words]))
        assert measured == {matrix, table} & set(found), (rows, words)


def test_the_curvature_is_the_mean_of_the_products_of_gradients() -> None:
    first, second = normal(3, 4, 7), normal(4, 4, 7)
    batches = [np.zeros((1, 5), np.int32), np.zeros((1, 3), np.int32)]
    steps = iter([(0.0, {"a": first / 5}), (0.0, {"a": second / 3})])
    found = loss_curvature(lambda _: next(steps), ["a", "frozen"], batches)
    assert list(found) == ["a"]
    np.testing.assert_allclose(found["a"].inputs, (first.T @ first + second.T @ second) / 8, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["a"].outputs, (first @ first.T + second @ second.T) / 8, rtol=1e-5, atol=1e-5)
