"""Initial values that a spec chooses: orthogonal matrices, overtone and bigram embeddings, the phase of resid_mix."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shared.engine.package import available_engines, create_engine
from shared.engine.synthetic import synthetic_start
from shared.errors import RunError, SpecError
from shared.model import bigrams, initial_weights, parameter_manifest, random_weights
from shared.model.bigrams import bigram_embedding, mutual_information
from shared.model.initialise import overtone
from shared.spec import load_spec
from shared.training.sources import starting_text

WIDE = ["model.model_dim=128", "model.num_heads=2", "model.num_kv_heads=1", "model.head_dim=64", "model.patch_size=1"]
STD = 0.005


def chain(vocab_size: int, length: int, seed: int = 0) -> np.ndarray:
    """Symbols [length] of which only the lower half of the alphabet occurs; each has five likely successors."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(0, vocab_size // 2, (vocab_size, 5))
    text = [0]
    for place, anything in zip(
        rng.integers(0, 5, length - 1), rng.integers(0, vocab_size // 2, length - 1), strict=True
    ):
        text.append(int(successors[text[-1], place]) if rng.random() < 0.9 else int(anything))
    return np.array(text, np.int32)


def test_orthogonal_matrices_of_64_and_more_and_nothing_else() -> None:
    plain, spec = load_spec("tiny", WIDE), load_spec("tiny", [*WIDE, "model.matrix_init=orthogonal"])
    before, after = initial_weights(plain), initial_weights(spec)
    changed = set()
    for parameter in parameter_manifest(spec):
        value = after[parameter.name].astype(np.float64)
        if (value == before[parameter.name]).all():
            continue
        changed.add(parameter.name)
        product = value @ value.T if value.shape[0] <= value.shape[1] else value.T @ value
        assert min(value.shape) >= 64 and np.abs(product - np.eye(min(value.shape))).max() < 1e-6, parameter.name
        # Uniform over all orthogonal matrices: LAPACK's own signs would make most of the diagonal negative.
        assert abs(np.sign(np.diag(value)).mean()) < 0.5, parameter.name
    expected = {f"layers.{layer}.{name}.weight" for layer in range(3) for name in ("attn.q_proj", "mlp.up_proj")}
    expected |= {f"layers.{layer}.attn.{name}_proj.weight" for layer in range(3) for name in "kv"}
    assert changed == expected
    assert not after["layers.0.attn.o_proj.weight"].any()


def test_overtone_keeps_the_vectors_and_lets_the_values_fall() -> None:
    spec = load_spec("tiny", ["model.embed_init=overtone"])
    normal = initial_weights(load_spec("tiny"))
    for name in ("embed.weight", "decoder.embed.weight"):
        left, singular, right = np.linalg.svd(normal[name].astype(np.float64), full_matrices=False)
        table = initial_weights(spec)[name].astype(np.float64)
        wanted = singular[0] / np.sqrt(np.arange(1, len(singular) + 1))
        assert np.abs(left.T @ table @ right.T - np.diag(wanted)).max() < 1e-7
    once = overtone(np.random.default_rng(0).normal(size=(20, 6)))
    assert np.allclose(overtone(once), once)


def test_mutual_information_of_a_text_by_hand() -> None:
    text = np.array([0, 1, 0, 1, 0, 2], np.int32)
    dense = mutual_information(text, 4).dense()
    # Five pairs: 01 twice, 10 twice, 02 once; three begin with 0 and two end with 0.
    expected = np.zeros((4, 4))
    expected[0, 1], expected[0, 2] = math.log(2 * 5 / (3 * 2)), math.log(1 * 5 / (3 * 1))
    expected[1, 0] = math.log(2 * 5 / (2 * 2))
    assert dense == pytest.approx(expected)


def test_bigram_embedding_holds_the_statistics() -> None:
    """Its rows have the inner products that the largest singular values give; rows without statistics stay drawn."""
    size, dim = 300, 24
    text = chain(size, 20_000)
    draw = np.random.default_rng(1).normal(size=(size, dim)) * STD
    table = bigram_embedding(text, draw, STD, np.random.default_rng(2))
    known = np.unique(text[:-1])
    assert len(known) < size and (np.delete(table, known, 0) == np.delete(draw, known, 0)).all()
    assert np.sqrt(np.mean(table[known] ** 2)) == pytest.approx(STD)
    left, singular, _ = np.linalg.svd(mutual_information(text, size).dense())
    wanted = (left[:, :dim] * singular[:dim]) @ left[:, :dim].T
    products = table @ table.T
    inside = np.ix_(known, known)
    factor = products[inside].trace() / wanted[inside].trace()
    assert np.allclose(products[inside], factor * wanted[inside], atol=1e-6 * factor * np.abs(wanted).max())


def test_the_sketch_of_large_alphabets_finds_what_the_whole_matrix_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a spectrum so flat that single vectors are not determined: they are orthonormal and lose 5 % at most."""
    text, count = chain(300, 20_000), 24
    dense = mutual_information(text, 300).dense()
    singular = np.linalg.svd(dense, compute_uv=False)[:count]
    monkeypatch.setattr(bigrams, "LARGEST_DENSE", 0)
    monkeypatch.setattr(bigrams, "CHUNK_PAIRS", 1000)
    monkeypatch.setattr(bigrams, "BLOCK_ROWS", 70)
    matrix = mutual_information(text, 300)
    assert (matrix.dense() == dense).all() and (matrix.transposed().dense() == dense.T).all()
    assert matrix.times(np.eye(300)) == pytest.approx(dense, rel=1e-6)
    left, found = bigrams._left_vectors(matrix, count, np.random.default_rng(2))
    assert np.abs(left.T @ left - np.eye(count)).max() < 1e-9
    assert (0.95 * singular <= found).all() and (found <= singular * (1 + 1e-6)).all()
    assert np.linalg.norm(left.T @ dense) > 0.95 * np.linalg.norm(singular)


def test_bigram_embedding_wider_than_the_alphabet_keeps_the_rest_of_the_draw() -> None:
    draw = np.random.default_rng(1).normal(size=(10, 16))
    table = bigram_embedding(chain(10, 500), draw, 1.0, np.random.default_rng(2))
    assert (table[:, 10:] == draw[:, 10:]).all() and (table[:4, :10] != draw[:4, :10]).any()
    assert (bigram_embedding(np.zeros(9, np.int32), draw, 1.0, np.random.default_rng(2)) == draw).all()


def test_bigram_embeddings_read_the_training_text_alone() -> None:
    spec = load_spec("tiny", ["model.embed_init=bigram_svd", "data.selection_frac=0.2"])
    text = starting_text(spec)
    assert text is not None and starting_text(load_spec("tiny")) is None
    weights = initial_weights(spec, text)
    assert (weights["embed.weight"] == initial_weights(spec, text)["embed.weight"]).all()
    plain = initial_weights(load_spec("tiny"))
    tables = {"embed.weight", "decoder.embed.weight"}
    assert {name for name, value in weights.items() if (value != plain[name]).any()} == tables
    # Symbols with like successors are alike: capitals more than capitals and digits.
    rows = weights["embed.weight"].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    upper, digits = rows[ord("A") : ord("Z") + 1], rows[ord("0") : ord("9") + 1]
    assert (digits @ digits.T).mean() > (upper @ digits.T).mean() + 0.1
    with pytest.raises(RunError, match=r"^model.embed_init 'bigram_svd': initial weights need the training text$"):
        initial_weights(spec)
    assert synthetic_start(spec).keys() == random_weights(spec, 0).keys() == weights.keys()


def test_phase_of_resid_mix() -> None:
    weights = initial_weights(load_spec("tiny", ["model.num_layers=5", "model.resid_mix_init=phase"]))
    for layer, phase in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        first, second = weights[f"layers.{layer}.resid_mix"].astype(np.float64)
        assert first == pytest.approx(1 / (1 + math.exp(-3 * (phase - 0.5)))) and second == pytest.approx(1 - first)
    one = initial_weights(load_spec("tiny", ["model.num_layers=1", "model.resid_mix_init=phase"]))
    assert one["layers.0.resid_mix"].sum(axis=0) == pytest.approx(1.0)
    with pytest.raises(
        SpecError, match=r"model.resid_mix_init = 'phase': must be 'first' where model.resid_mix is false"
    ):
        load_spec("tiny", ["model.resid_mix=false", "model.resid_mix_init=phase"])


def test_engines_start_bit_identical() -> None:
    spec = load_spec(
        "tiny", [*WIDE, "model.matrix_init=orthogonal", "model.embed_init=bigram_svd", "training.compile=false"]
    )
    weights = synthetic_start(spec)
    for name in available_engines():
        engine = create_engine(name, spec)
        engine.initialise(weights)
        exported = engine.export_weights("trained")
        assert all((exported[key] == value).all() for key, value in weights.items())
