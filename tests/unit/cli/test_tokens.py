"""Tokens: text to tokens and back, bytes counted right everywhere, and no model scored with another's tokenizer."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tokenizer import Tokenizer
from data.tokenizer_training import Normalisation
from shared.engine.oracle import Oracle
from shared.engine.package import available_engines, create_engine
from shared.engine.synthetic import synthetic_loader
from shared.errors import DataError, SpecError
from shared.model import initial_weights, parameter_counts, parameter_manifest, random_weights
from shared.scoring.generate import first_bytes
from shared.scoring.random_bytes import check_random_bytes
from shared.spec import load_spec, spec_from_dict, spec_id, spec_to_dict
from tests.museum.leaks import megabyte_own_patch
from tests.token_text import SIZE, documents, small_tokenizer, token_spec, token_stream, trained_model

TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t 1984thecat\u2581")), max_size=80
)
NORMALISATIONS = st.sampled_from(["nmt_nfkc", "identity"])


@settings(max_examples=200)
@given(text=TEXT, normalisation=NORMALISATIONS)
def test_a_document_decodes_to_what_its_tokens_count(text: str, normalisation: Normalisation) -> None:
    tokenizer = small_tokenizer(normalisation)
    (tokens,) = tokenizer.encode([text])
    (decoded,) = tokenizer.table.decode([tokens])
    assert tokens[0] == tokenizer.table.document_start and tokens.max() < tokenizer.vocab_size
    assert int(tokenizer.table.counts(tokens, 1).sum()) == len(decoded)
    assert decoded.decode() == tokenizer.normalised(text)
    streamed = "".join(tokenizer.decode_stream(tokens.tolist()))
    if normalisation == "identity":
        # Also a space at the start, which has no bytes as a piece, and SentencePiece's own mark of a space.
        assert decoded.decode() == streamed == text
    else:
        assert streamed.removeprefix(" ") == tokenizer.normalised(text)


@settings(max_examples=60)
@given(seed=st.integers(0, 99), cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)), limit=st.floats(0.0, 1.1))
def test_streams_read_alike_in_any_pieces(seed: int, cuts: tuple[float, float], limit: float) -> None:
    texts, tokenizer = documents(12, seed), small_tokenizer()
    stream = token_stream(texts, tokenizer)
    whole = np.concatenate(tokenizer.encode(texts))
    ids = np.repeat(np.arange(12), [len(tokens) for tokens in tokenizer.encode(texts)])
    counts = stream.byte_counts(0, stream.num_symbols)
    start, stop = sorted(int(cut * stream.num_symbols) for cut in cuts)
    assert stream.read(start, stop - start).tolist() == whole[start:stop].tolist()
    assert stream.byte_counts(start, stop - start).tolist() == counts[start:stop].tolist()
    assert stream.document_ids(start, stop - start).tolist() == ids[start:stop].tolist()
    assert list(stream.documents()) == [tokenizer.normalised(text).encode() for text in texts]
    assert counts.sum() == stream.num_bytes == len(stream.text_bytes())
    stream.check_accounting()
    sample = stream.sample_documents(max(2, int(limit * stream.num_symbols)), seed)
    assert sample.num_symbols <= max(2, int(limit * stream.num_symbols))
    if sample.num_symbols > 2:
        sample.check_accounting()
    assert all(any(text.startswith(part) for text in stream.documents()) for part in sample.documents()) or limit < 0.1


def test_accounting_is_checked() -> None:
    tokenizer = small_tokenizer()
    stream = token_stream(documents(4), tokenizer)
    stream.num_bytes += 1
    with pytest.raises(DataError, match="the manifest says"):
        stream.check_accounting()


def test_a_tokenizer_whose_spaces_are_three_byte_pieces_is_refused() -> None:
    """Issue #897 of the public challenge: without a piece for a lone space the score is a fifth too low."""
    with pytest.raises(DataError, match="no piece for a lone space"):
        Tokenizer(trained_model("thecatsatonthemat"), Path("bad.model"))
    with pytest.raises(DataError, match="not a SentencePiece model"):
        Tokenizer(b"nothing of the kind", Path("bad.model"))


def test_first_bytes_cuts_no_character() -> None:
    pieces = ["ab", "\u00e9\u00e9", "c"]
    whole = "ab\u00e9\u00e9c"
    assert ["".join(first_bytes(pieces, count)) for count in range(8)] == [whole[:n] for n in (0, 1, 2, 2, 3, 3, 4, 5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["vocabulary.kind=tokens"], "vocabulary.vocab_size = 0: must be above 4"),
        (["vocabulary.vocab_size=300"], "vocabulary.vocab_size = 300: must be left out with kind 'byte256'"),
        (["vocabulary.kind=tokens", "vocabulary.vocab_size=65537"], "less than or equal to 65536"),
        (["vocabulary.kind=tokens", "vocabulary.vocab_size=300", "vocabulary.tokenizer=ab"], "vocabulary.tokenizer"),
        (["model.start=document_start", "model.patch_size=1"], "model.start = 'document_start': must be 'learned'"),
        (["model.start=document_start", "vocabulary.kind=byte260"], "unless patch_size is 1"),
    ],
)
def test_what_the_spec_refuses(changes: list[str], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec("tiny", changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_baseline_has_the_published_number_of_parameters() -> None:
    """docs/techniques.md 13.1. The document start's row stands where other specs have a start vector."""
    spec = load_spec("baseline")
    assert parameter_counts(spec)["total"] == 17_059_912
    assert (spec.model.num_layers, spec.model.model_dim, spec.model.mlp_dim) == (9, 512, 1024)
    assert (spec.model.seq_len, spec.training.batch_symbols) == (1024, 524_288)
    kinds = [
        {re.sub(r"\d+", "N", parameter.name) for parameter in parameter_manifest(load_spec(name))}
        for name in ("baseline", "baseline-mini")
    ]
    assert kinds[0] == kinds[1]


def test_the_first_place_reads_the_document_start() -> None:
    """The same distributions as a learned start that happens to be the row of the document start."""
    start = token_spec({"vocab_size": 40}, start="document_start")
    learned = spec_from_dict({**spec_to_dict(start), "model": {**spec_to_dict(start)["model"], "start": "learned"}})
    weights = random_weights(start, 3)
    assert "embed.start" not in weights
    x = np.random.default_rng(0).integers(0, 40, (2, 32)).astype(np.int32)
    same = Oracle(learned, {**weights, "embed.start": weights["embed.weight"][1]})
    np.testing.assert_array_equal(Oracle(start, weights).log_probs(x), same.log_probs(x))
    for engine_name in available_engines():
        engine = create_engine(engine_name, start)
        engine.initialise(weights)
        _, gradients = engine.gradients(x)
        assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())


def test_spec_id_tells_tokenizers_apart() -> None:
    specs = [token_spec({"vocab_size": 300, "tokenizer": tokenizer}) for tokenizer in ("", "ab" * 32, "cd" * 32)]
    assert len({spec_id(spec) for spec in specs}) == 3


def test_parity_batches_of_tokens_need_no_tokenizer() -> None:
    spec = token_spec({"vocab_size": 50})
    loader = synthetic_loader(spec, 0)
    batches = np.stack([loader.batch(step) for step in range(8)])
    assert batches.shape == (8, 8, 32) and batches.min() == 1 and 4 < batches.max() < 50


@pytest.mark.slow
def test_random_tokens_are_worth_log2_of_their_number() -> None:
    engine = available_engines()[0]
    honest = token_spec({"vocab_size": 64})
    check = check_random_bytes(lambda spec: create_engine(engine, spec), honest, steps=40)
    assert check.passed and 6.0 <= check.measured < 6.5, check
    leaky = token_spec(
        {"vocab_size": 64}, patch_size=4, decoder={"kind": "autoregressive", "dim": 32, "num_heads": 2, "mlp_dim": 64}
    )
    caught = check_random_bytes(lambda spec: create_engine(engine, spec, megabyte_own_patch), leaky, steps=40)
    assert not caught.passed and caught.measured < 5.0


def test_initial_weights_do_not_depend_on_the_tokenizer() -> None:
    one, other = (initial_weights(token_spec({"vocab_size": 60, "tokenizer": name * 32})) for name in ("ab", "cd"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_same_text_gives_the_same_tokenizer() -> None:
    assert trained_model("a text of some words") == trained_model("a text of some words")
    assert small_tokenizer().vocab_size == SIZE
