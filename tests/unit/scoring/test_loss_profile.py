"""The profile of a loss is made of the figures that the score sums."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.stream import SymbolStream
from shared.errors import DataError
from shared.scoring.bits_per_byte import score_by_spec
from shared.scoring.loss_profile import CLASSES, EXCERPT_SYMBOLS, LossProfile, profile_loss, symbol_bytes, top_share
from shared.spec import VocabularySpec, load_spec
from tests.museum.fake_stream import FakeStream
from tests.token_text import documents, small_tokenizer, token_stream, vocabulary

TEXTS = [b"Plain words, 3 of them.\n" * 30, "caf\u00e9 \u4e2d\u6587\x01 ".encode() * 40, b"XYZ" * 150, b"short"]
WINDOW, PATCH = 32, 4


class TableScorer:
    """Nats by symbol and by position in the window, whole numbers, so that sums are exact."""

    def __init__(self, size: int = 260, stride: int = WINDOW) -> None:
        shape = [f"model.seq_len={WINDOW}", f"model.patch_size={PATCH}", f"evaluation.stride_symbols={stride}"]
        self.spec = load_spec("tiny", [*shape, f"evaluation.batch_symbols={4 * WINDOW}"])
        self.table = np.random.default_rng(0).integers(1, 1 << 10, size).astype(np.float32)
        self.shapes: set[tuple[int, ...]] = set()

    def score(self, x: np.ndarray) -> np.ndarray:
        self.shapes.add(x.shape)
        return self.table[x] + np.arange(x.shape[1], dtype=np.float32)


def profile(stream: SymbolStream | FakeStream, scorer: TableScorer, max_symbols: int = 1 << 20) -> LossProfile:
    return profile_loss(scorer, stream, max_symbols=max_symbols)  # type: ignore[arg-type]


@settings(max_examples=25)
@given(st.sampled_from(["byte256", "byte260"]), st.sampled_from([WINDOW, WINDOW // 2]), st.integers(1, 4))
def test_the_parts_add_up_to_the_score(kind: str, stride: int, count: int) -> None:
    stream = FakeStream(TEXTS[:count], VocabularySpec(kind=kind))  # type: ignore[arg-type]
    scorer = TableScorer(stride=stride)
    found, score = profile(stream, scorer), score_by_spec(scorer, stream)  # type: ignore[arg-type]
    assert (found.total.nats, found.total.symbols, found.total.bytes) == (score.nats, score.symbols, score.bytes)
    for parts in (found.classes, found.patch, found.window):
        assert sum(part.nats for part in parts) == score.nats
        assert sum(part.symbols for part in parts) == score.symbols
        assert sum(part.bytes for part in parts) == score.bytes
    by_name = {part.name: part for part in found.classes}
    assert found.total.bpb == score.bpb
    assert kind == "byte256" or by_name["document starts"].bpb is None
    symbols = np.concatenate([stream.read(0, stream.num_symbols)])
    digits = np.isin(symbols - stream.vocabulary.byte_offset, list(b"0123456789"))
    assert by_name["digits"].symbols == digits.sum() and by_name.keys() <= set(CLASSES)
    assert ("document starts" in by_name) == (kind == "byte260") and len(found.patch) == PATCH
    assert len(scorer.shapes) <= 2, "a pass of one shape each for profile and score"


def test_documents_are_shown_with_the_nats_of_the_score() -> None:
    stream, scorer = FakeStream(TEXTS), TableScorer(stride=WINDOW // 2)
    by_document = score_by_spec(scorer, stream).by_document  # type: ignore[arg-type]
    found = profile_loss(scorer, stream, max_symbols=WINDOW, documents=by_document)  # type: ignore[arg-type]
    bpb = by_document.nats / math.log(2.0) / by_document.bytes
    order = [int(index) for index in np.argsort(-bpb[:3])]
    assert [each.index for each in (*found.worst, *reversed(found.best))] == order, "the short one is left out"
    for each in (*found.worst, *found.best):
        assert each.bpb == pytest.approx(bpb[each.index]) and each.num_bytes == len(TEXTS[each.index])
        assert b"".join(content for content, _ in each.pieces) == TEXTS[each.index][:EXCERPT_SYMBOLS]
        if len(TEXTS[each.index]) <= EXCERPT_SYMBOLS:
            assert sum(nats for _, nats in each.pieces) == by_document.nats[each.index]


def test_a_sample_is_from_all_over_the_text() -> None:
    stream = FakeStream([b"a" * 3200, b"b" * 3200])
    found = profile(stream, TableScorer(), 10 * WINDOW)
    assert found.total.symbols == 10 * WINDOW
    assert {each.index for each in (*found.worst, *found.best)} == {0, 1}


def test_tokens_are_shown_as_the_text_they_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_tokenizer()
    monkeypatch.setattr("shared.scoring.loss_profile.tokenizer_by_hash", lambda sha256: tokenizer)
    texts = documents(4, seed=3)
    stream = token_stream(texts, tokenizer)
    found = profile(stream, TableScorer(tokenizer.vocab_size))
    for each in (*found.worst, *found.best):
        text = tokenizer.normalised(texts[each.index]).encode()
        assert b"".join(content for content, _ in each.pieces) == text
    names = {part.name for part in found.classes}
    assert {"lower-case letters", "document starts"} <= names
    assert symbol_bytes(vocabulary(tokenizer), [0, 1]) == [b"", b""]


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(DataError, match="no text to score"):
        profile(FakeStream([]), TableScorer())


@given(st.lists(st.floats(0, 50, width=32), min_size=1, max_size=300), st.floats(0.001, 1.0))
def test_the_costliest_symbols_carry_their_share(values: list[float], frac: float) -> None:
    nats = np.array(values)
    share = top_share(nats, frac)
    costliest = sorted(values, reverse=True)[: math.ceil(frac * len(values))]
    assert share == pytest.approx(sum(costliest) / sum(values) if sum(values) else 0.0)
    assert top_share(nats, 1.0) == pytest.approx(1.0 if sum(values) else 0.0)
