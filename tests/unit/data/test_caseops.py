"""CaseOps: no text loses anything, sentinels have no bytes, and pieces of a text decode as the whole does."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import caseops, detokenise
from data.detokenise import TokenDocuments
from data.tokenizer import Tokenizer
from shared.errors import DataError
from tests.token_text import SIZE, WORDS, caseops_tokenizer, token_stream, trained_model, write_shard

LETTERS = st.sampled_from("aAbBzZ")
TEXT = st.text(
    st.one_of(
        LETTERS,
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(["\ue001", "\ue002", "\ue003", "\ue004"]),
        # Turkish i with and without its dot, long s, sharp s, Kelvin, combining marks, full width, the mark of a space.
        st.sampled_from("\u0130\u0131\u017f\u1e9e\u212a\u0331\u0301\u0307\uff21\u2581 19-'"),
    ),
    max_size=60,
)


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("the Cat sat", "the \ue001cat sat"),
        ("A I", "\ue001a \ue001i"),
        ("NASA's DOGs", "\ue002nasa's \ue001d\ue003o\ue003gs"),
        ("iPhone McDonald", "i\ue003phone \ue001mc\ue003donald"),
        ("AB1CD", "\ue002ab1\ue002cd"),
        # Only A to Z: what is not ASCII ends a run and stays.
        ("\u0130STANBUL \u00c9TE\u0301 H\u0331", "\u0130\ue002stanbul \u00c9\ue002te\u0301 \ue001h\u0331"),
        ("\ue001a\ue004\ue004", "\ue004\ue001a\ue004\ue004\ue004\ue004"),
    ],
)
def test_the_form_of_the_public_records(text: str, marked: str) -> None:
    assert caseops.encode(text) == marked and caseops.decode(marked) == text


@settings(max_examples=300)
@given(text=TEXT, cuts=st.lists(st.integers(0, 80), max_size=4))
def test_every_text_comes_back(text: str, cuts: list[int]) -> None:
    marked = caseops.encode(text)
    assert not set(marked) & set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert caseops.decode(marked) == text
    decoder, borders = caseops.CaseDecoder(), sorted({0, len(marked), *(min(cut, len(marked)) for cut in cuts)})
    pieces = [decoder.decode(marked[start:stop]) for start, stop in pairwise(borders)]
    assert "".join(pieces) == text


@pytest.mark.slow
@settings(max_examples=200)
@given(text=TEXT, cut=st.integers(0, 99))
@example(text="\ue004" * 70 + "\ue001Ab", cut=66)
def test_tokens_count_the_bytes_of_the_text(text: str, cut: int) -> None:
    (tokens,) = caseops_tokenizer().encode([text])
    table = caseops_tokenizer().table
    counts = table.counts(tokens, table.document_start)
    assert table.has_caseops and table.decode([tokens]) == [text.encode()]
    assert counts.sum() == len(text.encode()) and "".join(caseops_tokenizer().decode_stream(tokens.tolist())) == text
    # Any part of the tokens counts as it does within the whole.
    cut = 1 + cut % len(tokens)
    head, tail = tokens[:cut], tokens[cut:]
    assert counts[cut:].tolist() == table.counts(tail, table.following(head, table.document_start)).tolist()
    (start,) = table.decode([head])
    # Byte pieces that a cut leaves without their character decode to its replacement.
    assert len(start) == counts[:cut].sum() or start.decode().endswith("\ufffd")
    continued = "".join(caseops_tokenizer().decode_stream(tail.tolist(), prompt=head.tolist()))
    assert start.decode() + continued == text or "\ufffd" in continued


@settings(max_examples=100)
@given(tokens=st.lists(st.sampled_from([4, 5, 6, 7, 7, 7, 50, 200, 280, 300, 310]), min_size=1, max_size=99))
def test_tokens_that_no_text_has_decode_to_what_they_count(tokens: list[int]) -> None:
    """A model may write sentinels anywhere."""
    table = caseops_tokenizer().table
    document = np.array([table.document_start, *tokens], np.uint16)
    (decoded,) = table.decode([document])
    assert len(decoded) == table.counts(document, table.document_start).sum() or "\ufffd" in decoded.decode()


@settings(max_examples=30)
@given(texts=st.lists(TEXT.filter(len), min_size=2, max_size=5), cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_streams_count_alike_in_any_pieces(texts: list[str], cuts: tuple[float, float]) -> None:
    stream = token_stream([*texts, "\ue004" * 99], caseops_tokenizer())
    counts = stream.byte_counts(0, stream.num_symbols)
    start, stop = sorted(int(cut * stream.num_symbols) for cut in cuts)
    assert stream.byte_counts(start, stop - start).tolist() == counts[start:stop].tolist()
    stream.check_accounting()
    assert stream.text_bytes().decode() == "".join([*texts, "\ue004" * 99])


def test_shards_become_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches end anywhere, also among escapes."""
    texts = ["The NASA iCat \ue004\ue004\ue004\ue001", "\ue004" * 8, "A"]
    path = tmp_path / "shard.bin"
    write_shard(path, np.concatenate(caseops_tokenizer().encode(texts)))
    for size in range(1, 8):
        monkeypatch.setattr(detokenise, "BATCH_TOKENS", size)
        assert list(TokenDocuments([path], caseops_tokenizer().table)) == [text.encode() for text in texts]


@pytest.mark.parametrize(
    ("normalisation", "message"), [("nmt_nfkc", "allowed is `identity`"), ("nmt_nfkc_cf", "it folds capital letters")]
)
def test_a_tokenizer_that_would_lose_case_is_refused(normalisation: str, message: str) -> None:
    content = trained_model(WORDS, normalisation, SIZE, user_defined_symbols=list(caseops.SENTINELS))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        Tokenizer(content, Path("lossy.model"))
