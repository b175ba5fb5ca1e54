"""Factored tables of symbols: the same function as their product, with both factors learning."""

from __future__ import annotations

import numpy as np
import pytest

from shared.artifact.predict import predict_artifact_bytes
from shared.engine.oracle import Oracle
from shared.errors import SpecError
from shared.model import initial_weights, parameter_counts, parameter_manifest
from shared.spec import Spec
from tests.techniques import BYTES, TOKENS, oracle_params, symbols, tiny

SHAPES = {
    "tied": BYTES,
    "untied": [*BYTES, "model.tie_embeddings=false"],
    "tokens": [*BYTES, *TOKENS, "model.start=document_start"],
    "patches": ["model.patch_size=4"],
    "n-grams": ["model.patch_size=4", "model.decoder.kind=mlp", "model.ngram.rows=50"],
}
every_shape = pytest.mark.parametrize("shape", list(SHAPES))


def factored(shape: str, rank: int = 10, *more: str) -> Spec:
    return tiny("model.num_layers=2", f"model.embed_rank={rank}", *SHAPES[shape], *more)


@every_shape
def test_it_is_the_model_with_the_product_as_its_table(shape: str) -> None:
    spec, full = factored(shape), factored(shape, 0)
    weights = oracle_params(spec)
    product = weights["embed.weight"] @ weights["embed.rank_proj.weight"].T
    others = {name: value for name, value in weights.items() if name != "embed.rank_proj.weight"}
    expected = Oracle(full, {**others, "embed.weight": product}).log_probs(symbols(spec, 2))
    assert np.abs(Oracle(spec, weights).log_probs(symbols(spec, 2)) - expected).max() < 1e-10


@every_shape
def test_counts_and_bytes_follow(shape: str) -> None:
    spec, full = factored(shape), factored(shape, 0)
    size, dim = spec.vocabulary.size, spec.model.model_dim
    counts, before = parameter_counts(spec), parameter_counts(full)
    assert counts["total"] == before["total"] - size * dim + (size + dim) * 10
    assert 0 < predict_artifact_bytes(spec).expected_bytes < predict_artifact_bytes(full).expected_bytes
    classes = {each.name: (each.group, each.quantisation) for each in parameter_manifest(spec)}
    assert classes["embed.weight"] == ("embedding", "embedding")
    assert classes["embed.rank_proj.weight"] == ("matrix", "matrix")


def test_a_factored_model_starts_near_a_uniform_distribution() -> None:
    for init in ("normal", "overtone"):
        spec = factored("tied", 24, f"model.embed_init={init}")
        assert Oracle(spec, initial_weights(spec)).score(symbols(spec)).mean() == pytest.approx(np.log(256), abs=0.02)


def test_a_rank_that_saves_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"model.embed_rank = 32: must be 0 or below model.model_dim \(32\)"):
        factored("tied", 32)
