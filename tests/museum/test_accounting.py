"""Each planted accounting bug is caught by its check, and by no other."""

from __future__ import annotations

import numpy as np
import pytest

from shared.engine.oracle import Oracle
from shared.model import random_weights
from shared.scoring.audit import AuditReport, audit_scorer
from shared.scoring.bits_per_byte import Score, WindowPlan, score_stream
from shared.scoring.windows import plan_windows
from shared.spec import load_spec
from tests.museum import accounting
from tests.museum.fake_stream import FakeStream

SPEC = load_spec("tiny", ["model.num_layers=1", "model.seq_len=32"])
ORACLE = Oracle(SPEC, random_weights(SPEC, 0))
WORDS = [b"the cat sat on the mat and then it ran off ", b"a byte is not a token is not a word "]


def text(kind: type[FakeStream] = FakeStream) -> FakeStream:
    rng = np.random.default_rng(0)
    return kind([b"".join(WORDS[word] for word in rng.integers(0, 2, 4)) for _ in range(11)])


def score(scorer: object, stream: FakeStream, stride: int = 32, plan: WindowPlan = plan_windows) -> Score:
    return score_stream(
        scorer,  # type: ignore[arg-type]
        stream,
        seq_len=32,
        stride=stride,
        batch_rows=16,
        confidence=0.95,
        plan=plan,
    )


def failures(report: AuditReport) -> list[str]:
    return [check.name for check in report.failures]


def test_the_honest_score_passes_every_check() -> None:
    stream = text()
    report = audit_scorer(ORACLE, stream, score(ORACLE, stream, stride=8))
    expected = ["future", "target", "normalisation", "order", "positions", "coverage", "denominator", "plausibility"]
    assert [check.name for check in report.checks] == expected
    assert report.passed, report.failures


@pytest.mark.parametrize(
    ("planted", "caught_by"),
    [
        (accounting.CacheBonus, ["normalisation"]),
        (accounting.TargetGate, ["target"]),
        (accounting.WholeWindowBias, ["future", "target"]),
        (accounting.OtherRowsBias, ["future", "target", "order"]),
        (accounting.RoundedDown, ["target", "normalisation"]),
    ],
)
def test_planted_scorers(planted: type[accounting.WrappedScorer], caught_by: list[str]) -> None:
    assert failures(audit_scorer(planted(ORACLE), text())) == caught_by


@pytest.mark.parametrize("stride", [32, 8])
@pytest.mark.parametrize("plan", [accounting.plan_with_double_tail, accounting.plan_without_tail])
def test_planted_window_plans(plan: WindowPlan, stride: int) -> None:
    stream = text()
    assert stream.num_symbols % 8 != 0
    caught = failures(audit_scorer(ORACLE, stream, score(ORACLE, stream, stride, plan)))
    if plan is accounting.plan_with_double_tail and stride == 32:
        assert caught == []  # Windows that do not overlap cannot count a symbol twice.
    else:
        assert "coverage" in caught


def test_spaces_counted_twice() -> None:
    stream = text(accounting.SpacesTwice)
    wrong = score(ORACLE, stream)
    assert wrong.bpb < 0.9 * score(ORACLE, text()).bpb
    assert failures(audit_scorer(ORACLE, stream, wrong)) == ["denominator"]
