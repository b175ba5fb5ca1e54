"""Hashed n-gram embeddings: their definition, what they may read, and that they learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.engine.flops import training_flops
from shared.engine.oracle import Oracle
from shared.errors import SpecError
from shared.model import Forward, forward, initial_weights, parameter_manifest, random_weights
from shared.model.ngram import decoder_ngrams, ngram_rows, trunk_ngrams
from shared.scoring.audit import audit_scorer
from shared.scoring.gradient_check import without_gradient
from shared.spec import Spec
from shared.tolerances import ORACLE_OPERATION_REL
from tests.implementations import OPS, examples
from tests.museum.fake_stream import FakeStream
from tests.museum.ngrams import dead_factors, ngrams_across_documents, ngrams_of_the_target, without_ngrams
from tests.techniques import NGRAMS, every_engine, oracle_params, symbols, tiny, trained


def naive_row(symbols: list[int], multiplier: int, rows: int) -> int:
    """In whole numbers of any size."""
    value = 0
    for symbol in symbols:
        value = value * multiplier + symbol
    return value % rows


@examples
@given(st.integers(2, 65_536), st.integers(1, 32_767), st.integers(2, 6), st.integers(0, 99))
def test_rows_are_the_same_everywhere(rows: int, multiplier: int, length: int, seed: int):
    symbols = np.random.default_rng(seed).integers(0, 65_536, (length, 2, 5)).astype(np.int32)
    symbols[:, 0, 0] = 65_535
    expected = [[naive_row(symbols[::-1, i, j].tolist(), multiplier, rows) for j in range(5)] for i in range(2)]
    for ops in OPS.values():
        found = ops.to_numpy(ngram_rows([ops.asarray(each) for each in symbols], multiplier, rows))
        assert found.tolist() == expected


def test_the_published_hash_of_bytes():
    """256 previous + current, modulo 4096 (docs/techniques.md 4.3)."""
    rows = ngram_rows([np.array([[7]]), np.array([[200]])], 256, 4096)
    assert rows.tolist() == [[(256 * 200 + 7) % 4096]]


def test_one_reader_reads_all_lengths_and_the_other_none():
    for reader, other in (("trunk", "decoder"), ("decoder", "trunk")):
        ngram = tiny("model.ngram.rows=97", "model.ngram.longest=4", f"model.ngram.reader={reader}").model.ngram
        assert list(ngram.lengths_for(reader)) == [2, 3, 4] and not ngram.lengths_for(other)
        assert not tiny(f"model.ngram.reader={reader}").model.ngram.lengths_for(reader)


@pytest.mark.parametrize("patch_size", [1, 4])
@pytest.mark.parametrize("kind", ["byte256", "byte260"])
def test_the_definition(kind: str, patch_size: int):
    """Symbol by symbol: nothing from before the window, nor from another document than the patch's last."""
    spec = tiny(*NGRAMS, f"vocabulary.kind={kind}", f"model.patch_size={patch_size}", "model.tie_embeddings=false")
    weights, x = oracle_params(spec, 1), marked_symbols(spec)
    features = naive_features(spec, weights, x, lambda time: time // patch_size * patch_size + patch_size - 1)
    mean = features.reshape(2, 32 // patch_size, patch_size, 8).mean(axis=2)
    expected = float(weights["ngram_embed.scale"][0]) * mean @ weights["ngram_embed.proj.weight"].T
    found = trunk_ngrams(OPS["numpy"], spec, weights, x)
    assert np.abs(found - expected).max() <= ORACLE_OPERATION_REL * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["byte256", "byte260"])
def test_the_definition_for_a_decoder(kind: str):
    """Position t has the n-grams that end with x[t - 1] and lie in its document and window."""
    spec = tiny(*NGRAMS, "model.ngram.reader=decoder", f"vocabulary.kind={kind}")
    weights, x = oracle_params(spec, 1), marked_symbols(spec)
    features = naive_features(spec, weights, x, lambda time: time)
    read = float(weights["ngram_embed.scale"][0]) * features @ weights["ngram_embed.proj.weight"].T
    expected = np.concatenate([np.zeros((2, 1, spec.model.decoder.dim)), read[:, :-1]], axis=1)
    found = decoder_ngrams(OPS["numpy"], spec, weights, x)
    assert np.abs(found - expected).max() <= ORACLE_OPERATION_REL * np.abs(expected).max()


def marked_symbols(spec: Spec) -> np.ndarray:
    """Random symbols [2, 32], a fifth of them 1, which starts a document in some vocabularies."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, spec.vocabulary.size, (2, 32))
    x[rng.random(x.shape) < 0.2] = 1
    return x


def naive_features(
    spec: Spec, weights: Mapping[str, np.ndarray], x: np.ndarray, own: Callable[[int], int]
) -> np.ndarray:
    """Row by row, [2, 32, 8]: an n-gram counts if it begins in the window and in the document of symbol own(t)."""
    document = np.cumsum(x == 1, axis=1) if spec.vocabulary.document_start == 1 else np.zeros_like(x)
    features = np.zeros((*x.shape, 8))
    for row, time, length in np.ndindex(*x.shape, 2):
        first, length = time - length - 1, length + 2
        if first >= 0 and document[row, first] == document[row, own(time)]:
            table = weights[f"ngram_embed.tables.{length}.weight"]
            features[row, time] += table[naive_row(x[row, first : time + 1].tolist(), 1021, 97)]
    return features


@every_engine
@pytest.mark.parametrize("reader", ["trunk", "decoder"])
def test_every_factor_learns_and_two_zero_ones_do_not(name: str, reader: str):
    spec = tiny(*NGRAMS, f"model.ngram.reader={reader}")
    alive, dead = (
        without_gradient(engine.gradients(symbols(spec))[1])
        for engine in (trained(name, spec), trained(name, spec, dead_factors(spec)))
    )
    assert alive == []
    assert dead == [each.name for each in parameter_manifest(spec) if each.name.startswith("ngram_embed.")]


def test_of_every_new_pair_of_factors_one_is_not_zero():
    spec = tiny(*NGRAMS)
    factors = {name: value for name, value in initial_weights(spec).items() if name.startswith("ngram_embed.")}
    assert [name for name, value in factors.items() if value.any()] == ["ngram_embed.proj.weight", "ngram_embed.scale"]


@pytest.mark.parametrize("reader", ["trunk", "decoder"])
def test_switched_off_it_is_today_s_model(reader: str):
    plain, spec = tiny(), tiny(*NGRAMS, f"model.ngram.reader={reader}")
    assert without_ngrams(spec).model == plain.model
    weights = initial_weights(spec)
    assert all(np.array_equal(weights[name], value) for name, value in initial_weights(plain).items())
    # The tables begin at zero, so the first function is the same as well.
    x = np.random.default_rng(0).integers(0, 256, (2, 64))
    np.testing.assert_array_equal(Oracle(spec, weights).score(x), Oracle(plain, initial_weights(plain)).score(x))
    added = training_flops(spec).matrices - training_flops(plain).matrices
    # One product, for each patch of the trunk or each symbol of the decoder.
    expected = {"trunk": plain.model.model_dim / plain.model.patch_size, "decoder": plain.model.decoder.dim}
    assert added == 6 * 8 * expected[reader]


def failures(spec: Spec, model: Forward) -> list[str]:
    rng = np.random.default_rng(0)
    text = FakeStream([rng.integers(32, 127, 100).astype(np.uint8).tobytes() for _ in range(9)], spec.vocabulary)
    report = audit_scorer(Oracle(spec, random_weights(spec, 0), model), text, seed=0)
    return [check.name for check in report.failures]


MASKED = [
    "vocabulary.kind=byte260",
    "model.seq_len=48",
    "model.attention.document_mask=true",
    "training.batch_symbols=480",
    "evaluation.batch_symbols=480",
    "model.tie_embeddings=false",
]


every_patch = pytest.mark.parametrize(
    "patch", [["model.patch_size=1", "model.decoder.kind=linear"], ["model.patch_size=4", "model.decoder.kind=mlp"]]
)


@every_patch
def test_ngrams_of_the_target(patch: list[str]):
    spec = tiny(*NGRAMS, *MASKED, *patch)
    assert failures(spec, forward) == []
    # The audit tells the future within a patch from the target itself; with patches of one there is only the target.
    expected = ["target"] if spec.model.patch_size == 1 else ["future", "target"]
    assert failures(spec, ngrams_of_the_target)[: len(expected)] == expected


@every_patch
def test_ngrams_across_documents(patch: list[str]):
    assert failures(tiny(*NGRAMS, *MASKED, *patch), ngrams_across_documents) == ["isolation"]


@pytest.mark.parametrize("override", ["rows=1", "rows=65537", "longest=7", "longest=1", "multiplier=32768", "dim=0"])
def test_what_is_refused(override: str):
    with pytest.raises(SpecError, match=r"model\.ngram\." + override.split("=")[0]):
        tiny(f"model.ngram.{override}")


def test_a_decoder_that_reads_no_symbols_reads_no_ngrams():
    with pytest.raises(SpecError, match=r"model\.ngram\.reader"):
        tiny("model.ngram.reader=decoder", "model.decoder.kind=mlp")


def test_ngrams_of_a_decoder_may_be_longer_than_its_context():
    spec = tiny("model.ngram.rows=97", "model.ngram.longest=6", "model.ngram.reader=decoder", "model.decoder.context=3")
    assert spec.model.decoder_reach == 6
    assert tiny("model.ngram.longest=6", "model.ngram.reader=decoder").model.decoder_reach == 1
