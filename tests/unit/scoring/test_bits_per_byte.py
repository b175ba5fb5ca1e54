"""The score of a stream, seen from outside: what scorers that know the answer must get."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.engine.oracle import Oracle
from shared.errors import DataError, RunError
from shared.model import random_weights
from shared.scoring.bits_per_byte import Score, score_stream
from shared.spec import VocabularySpec, load_spec
from tests.museum.fake_stream import FakeStream

SPEC = load_spec("tiny", ["model.num_layers=1", "model.seq_len=16"])
BYTE260 = VocabularySpec(kind="byte260")


class TableScorer:
    """Nats by symbol alone, as whole numbers, so that sums are exact; remembers the shapes it was given. It has no
    distributions, as a score needs none."""

    spec = SPEC

    def __init__(self) -> None:
        self.table = np.random.default_rng(0).integers(1, 1 << 16, 260).astype(np.float32)
        self.shapes: list[tuple[int, ...]] = []

    def score(self, x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.int32
        self.shapes.append(x.shape)
        return self.table[x]


class PlaceScorer(TableScorer):
    """The nats of a symbol are its place in the window, so that a score tells how much context it had."""

    def score(self, x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.arange(x.shape[1], dtype=np.float32), x.shape)


def score(scorer: object, stream: FakeStream, **how: Any) -> Score:
    how = {"seq_len": 16, "stride": 16, "batch_rows": 4, "confidence": 0.95, **how}
    return score_stream(scorer, stream, **how)  # type: ignore[arg-type]


@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=14),
    st.integers(1, 30).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length))),
    st.integers(1, 9),
    st.sampled_from([VocabularySpec(), BYTE260]),
)
def test_nats_are_the_sum_over_every_symbol_once(
    documents: list[bytes], window: tuple[int, int], batch_rows: int, vocabulary: VocabularySpec
) -> None:
    stream, scorer = FakeStream(documents, vocabulary), TableScorer()
    found = score(scorer, stream, seq_len=window[0], stride=window[1], batch_rows=batch_rows)
    assert found.nats == scorer.table[stream.symbols].astype(np.float64).sum()
    assert found.symbols == stream.num_symbols
    assert found.bytes == found.text_bytes == sum(map(len, documents))
    assert found.documents == len(documents)
    assert len(set(scorer.shapes)) == 1 and scorer.shapes[0][0] <= batch_rows


def test_document_starts_cost_nats_and_count_no_bytes() -> None:
    """Each the ln V of a model that knows nothing."""
    scorer = TableScorer()
    scorer.table[:] = math.log(260)
    found = score(scorer, FakeStream([b"abc", b"de"], BYTE260))
    assert (found.symbols, found.bytes, found.documents) == (7, 5, 2)
    assert found.bpb == pytest.approx(7 * math.log2(260) / 5, rel=1e-6)
    assert found.nats_per_symbol == pytest.approx(math.log(260), abs=1e-6)


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_each_symbol_has_the_context_the_stride_promises(stride: int) -> None:
    num_symbols = 16 + 3 * stride
    found = score(PlaceScorer(), FakeStream([b"x" * num_symbols]), stride=stride)
    assert found.nats == sum(range(16)) + 3 * sum(range(16 - stride, 16))


def test_model_score_is_the_sum_of_its_own_window_scores() -> None:
    """Against windows cut by hand and scored alone without batching; the tail without padding."""
    oracle = Oracle(SPEC, random_weights(SPEC, 0))
    stream = FakeStream([bytes(np.random.default_rng(1).integers(0, 256, 36).astype(np.uint8))])
    found = score(oracle, stream, stride=8)
    x = stream.symbols[None]
    expected = oracle.score(x[:, :16]).sum() + oracle.score(x[:, 8:24])[:, 8:].sum()
    expected += oracle.score(x[:, 16:32])[:, 8:].sum() + oracle.score(x[:, 24:36])[:, 8:].sum()
    assert found.nats == pytest.approx(expected, rel=1e-12)


def test_interval_is_over_documents_if_they_are_enough() -> None:
    scorer = TableScorer()
    many = score(scorer, FakeStream([b"abcde", b"fgh"] * 5)).confidence
    few = score(scorer, FakeStream([b"abcde" * 9, b"fgh"])).confidence
    assert (many.units, many.num_units) == ("documents", 10)
    assert many.low_bpb is not None and many.high_bpb is not None and many.low_bpb < many.high_bpb
    assert (few.num_units, few.low_bpb, few.high_bpb) == (2, None, None) and few.reason is not None


def test_interval_does_not_shrink_because_windows_overlap() -> None:
    stream = FakeStream([b"abcde" * n for n in range(1, 13)])
    wide, narrow = (score(TableScorer(), stream, stride=stride).confidence for stride in (16, 2))
    assert wide == narrow


def test_progress_ends_at_the_whole() -> None:
    calls: list[tuple[int, int]] = []
    progress = lambda done, total: calls.append((done, total))  # noqa: E731
    score(TableScorer(), FakeStream([b"x" * 100]), stride=8, batch_rows=2, progress=progress)
    assert calls[-1] == (100, 100) and calls == sorted(calls) and len(calls) > 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_a_number_is_refused(bad: float) -> None:
    scorer = TableScorer()
    scorer.table[ord("q")] = bad
    with pytest.raises(RunError, match=r"the score of symbol 41 is (nan|inf), not a number"):
        score(scorer, FakeStream([b"a" * 41 + b"q" + b"a" * 9]), stride=4)


def test_empty_text_is_refused() -> None:
    with pytest.raises(DataError, match="no text to score"):
        score(TableScorer(), FakeStream([]))
