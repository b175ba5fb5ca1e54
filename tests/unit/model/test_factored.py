"""Factored tables of symbols: the same function as their product, with both factors learning."""

from __future__ import annotations

import numpy as np
import pytest

from shared.artifact import pack_bytes, unpack_bytes
from shared.artifact.predict import predict_artifact_bytes
from shared.engine.flops import scoring_flops
from shared.engine.oracle import Oracle
from shared.engine.package import create_engine
from shared.engine.registry import ENGINES
from shared.errors import SpecError
from shared.model import forward, initial_weights, parameter_counts, parameter_manifest, random_weights
from shared.optim import step_hyperparameters
from shared.spec import Spec, load_spec
from tests.implementations import assert_one_graph
from tests.unit.engine.test_flops import CountingOps

TOKENS = ["vocabulary.kind=tokens", "vocabulary.vocab_size=300", "model.start=document_start"]
PLAIN = ["model.patch_size=1", "model.decoder.kind=linear"]
SHAPES = {
    "tied": PLAIN,
    "untied": [*PLAIN, "model.tie_embeddings=false"],
    "tokens": [*PLAIN, *TOKENS],
    "patches": ["model.patch_size=4"],
    "n-grams": ["model.patch_size=4", "model.decoder.kind=mlp", "model.ngram.rows=50"],
}
every_shape = pytest.mark.parametrize("shape", list(SHAPES))


def factored(shape: str, rank: int = 10, *more: str) -> Spec:
    overrides = ["training.compile=false", "model.num_layers=2", f"model.embed_rank={rank}"]
    return load_spec("tiny", [*overrides, *SHAPES[shape], *more])


def batch(spec: Spec) -> np.ndarray:
    return np.random.default_rng(0).integers(0, spec.vocabulary.size, (2, 64)).astype(np.int32)


@every_shape
def test_it_is_the_model_with_the_product_as_its_table(shape: str) -> None:
    spec, full = factored(shape), factored(shape, 0)
    weights = {name: value.astype(np.float64) for name, value in random_weights(spec, 0).items()}
    product = weights["embed.weight"] @ weights["embed.rank_proj.weight"].T
    others = {name: value for name, value in weights.items() if name != "embed.rank_proj.weight"}
    expected = Oracle(full, {**others, "embed.weight": product}).log_probs(batch(spec))
    assert np.abs(Oracle(spec, weights).log_probs(batch(spec)) - expected).max() < 1e-10


@every_shape
def test_counts_and_bytes_follow(shape: str) -> None:
    spec, full = factored(shape), factored(shape, 0)
    size, dim = spec.vocabulary.size, spec.model.model_dim
    counts, before = parameter_counts(spec), parameter_counts(full)
    assert counts["total"] == before["total"] - size * dim + (size + dim) * 10
    ops = CountingOps()
    x = batch(spec)
    forward(ops, spec, {name: ops.asarray(value) for name, value in random_weights(spec, 0).items()}, x)
    assert scoring_flops(spec, len(x)) * x.size == pytest.approx(ops.matrices + ops.attended, rel=1e-12)
    assert 0 < predict_artifact_bytes(spec).expected_bytes < predict_artifact_bytes(full).expected_bytes
    weights = random_weights(spec, 0)
    packed = unpack_bytes(pack_bytes(spec, weights))
    assert packed.spec == spec and packed.weights.keys() == weights.keys()
    classes = {each.name: (each.group, each.quantisation) for each in parameter_manifest(spec)}
    assert classes["embed.weight"] == ("embedding", "embedding")
    assert classes["embed.rank_proj.weight"] == ("matrix", "matrix")


@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("shape", ["tied", "patches"])
def test_both_factors_learn_from_the_first_step_that_reaches_them(name: str, shape: str) -> None:
    spec = factored(shape)
    engine = create_engine(name, spec)
    engine.initialise(initial_weights(spec))
    for step in range(3):
        engine.train_step(batch(spec), step_hyperparameters(spec, step, 0.1))()
    gradients = engine.gradients(batch(spec))[1]
    assert [key for key, value in gradients.items() if not value.any()] == []


def test_a_factored_model_starts_near_a_uniform_distribution() -> None:
    for init in ("normal", "overtone"):
        spec = factored("tied", 24, f"model.embed_init={init}")
        assert Oracle(spec, initial_weights(spec)).score(batch(spec)).mean() == pytest.approx(np.log(256), abs=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", list(ENGINES))
def test_the_compiled_function_is_the_one_of_the_oracle(name: str) -> None:
    spec = factored("tokens")
    assert_one_graph(name, forward, spec, random_weights(spec, 2), batch(spec))


def test_a_rank_that_saves_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"model.embed_rank = 32: must be 0 or below model.model_dim \(32\)"):
        factored("tied", 32)
