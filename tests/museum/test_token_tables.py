"""A byte table that counts too much is caught by the decoded text, and only the score's accounting is blamed."""

from __future__ import annotations

import numpy as np
import pytest
import sentencepiece

from data.token_bytes import TokenBytes
from data.token_stream import TokenStream
from shared.engine.oracle import Oracle
from shared.model import random_weights
from shared.scoring.audit import AuditReport, audit_scorer
from shared.scoring.bits_per_byte import Score, score_by_spec
from tests.museum import token_tables
from tests.token_text import documents, small_tokenizer, token_spec, token_stream

TOKENIZER = small_tokenizer()
SPEC = token_spec({"vocab_size": TOKENIZER.vocab_size, "tokenizer": TOKENIZER.sha256})
ORACLE = Oracle(SPEC, random_weights(SPEC, 0))
TEXTS = documents(24)


def scored(table: type[TokenBytes]) -> tuple[TokenStream, Score]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=TOKENIZER.content)
    stream = token_stream(TEXTS, TOKENIZER, table(processor))
    return stream, score_by_spec(ORACLE, stream)


def failures(stream: TokenStream, score: Score) -> list[str]:
    report: AuditReport = audit_scorer(ORACLE, stream, score)
    return [check.name for check in report.failures]


def test_the_honest_table_counts_what_the_text_has() -> None:
    stream, score = scored(TokenBytes)
    assert score.bytes == score.text_bytes == sum(len(TOKENIZER.normalised(text).encode()) for text in TEXTS)
    assert failures(stream, score) == []


@pytest.mark.parametrize(
    ("table", "factor"),
    [
        (token_tables.SpaceInPieceAndBefore, 1.1),
        (token_tables.FallbackBytesAsThree, 1.1),
        (token_tables.SpecialsAsText, 1.02),
    ],
)
def test_planted_tables(table: type[TokenBytes], factor: float) -> None:
    honest = scored(TokenBytes)[1]
    stream, wrong = scored(table)
    assert wrong.nats == pytest.approx(honest.nats)
    assert wrong.bpb < honest.bpb / factor
    assert failures(stream, wrong) == ["denominator"]
    assert np.isclose(wrong.text_bytes, honest.text_bytes, rtol=0)
