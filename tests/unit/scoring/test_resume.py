"""A long score: it resumes to the last digit, and tells early that it would take too long."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from shared.errors import UserError
from shared.model import random_weights
from shared.scoring.adaptation import score_text
from shared.scoring.bits_per_byte import Score
from shared.scoring.duration import LEAST_S, within
from shared.scoring.resume import ScoreState, weights_sha256
from shared.spec import Spec
from tests.museum.fake_stream import FakeStream
from tests.techniques import every_engine, started, tiny

SHORT = ("model.num_layers=1", "model.seq_len=16", "training.batch_symbols=32", "evaluation.batch_symbols=32")
ONLINE = ("evaluation.adaptation.kind=score_first", "evaluation.adaptation.chunk_symbols=32")
FORGETFUL = (*ONLINE, "evaluation.adaptation.reset=document", "evaluation.adaptation.lora.rank=2")
TEXT = [bytes(np.random.default_rng(seed).integers(97, 105, 60 + 40 * seed).astype(np.uint8)) for seed in range(4)]


class Killed(Exception):
    pass


def scored(name: str, spec: Spec, path: Path, passes: int = 1 << 30) -> tuple[Score, list[str]]:
    """A score that is killed after some passes, with what was said; every pass is kept."""
    lines: list[str] = []
    state = ScoreState(path, lines.append, every_s=0.0)
    state.bind({"text": "TEXT", "settings": spec.evaluation.model_dump(mode="json")})
    count = 0

    def progress(done: int, total: int) -> None:
        nonlocal count
        count += 1
        if count == passes:
            raise Killed

    scorer = started(name, spec, random_weights(spec, 1))
    return score_text(scorer, FakeStream(TEXT), progress=progress, state=state), lines


@pytest.mark.slow
@every_engine
@pytest.mark.parametrize("words", [(), ONLINE, FORGETFUL], ids=["plain", "score first", "forgets"])
def test_a_killed_score_resumes_to_the_last_digit(name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    spec, path = tiny(*SHORT, *words), tmp_path / "score.json.state"
    whole, _ = scored(name, spec, tmp_path / "whole")
    for passes in (2, 3):
        with pytest.raises(Killed):
            scored(name, spec, path, passes)
    resumed, lines = scored(name, spec, path)
    assert re.fullmatch(r"resumes after 5 of \d+ passes, from .*score.json.state", lines[0])
    assert resumed == whole and np.array_equal(resumed.by_document.nats, whole.by_document.nats)
    for one, other in zip(resumed.evidence.kept, whole.evidence.kept, strict=True):
        assert one[0] == other[0] and np.array_equal(one[1], other[1])
    assert np.array_equal(resumed.evidence.positions.squares, whole.evidence.positions.squares)


def test_a_state_that_does_not_fit_is_not_used(tmp_path: Path) -> None:
    spec, path = tiny(*SHORT), tmp_path / "state"
    with pytest.raises(Killed):
        scored("torch", spec, path, 3)
    content = path.read_bytes()
    other, lines = scored("torch", tiny(*SHORT, "evaluation.confidence=0.9"), path)
    assert "is of another score" in lines[0] and other.symbols == FakeStream(TEXT).num_symbols
    for damaged in (content[:-1], b"", content[:40] + b"x" + content[41:]):
        path.write_bytes(damaged)
        whole, lines = scored("torch", spec, path)
        assert lines == [f"{path} is damaged: the score begins again"] and whole.nats == other.nats
    state = ScoreState(path)
    state.offer(1, dict)
    assert path.read_bytes()[:32] != content[:32], "every score above wrote its own"
    state.remove()
    state.remove()
    assert not path.exists()


def test_weights_have_a_hash_of_their_names_shapes_and_values() -> None:
    weights = {"a": np.zeros((2, 3), np.float32), "b": np.ones(3, np.float32)}
    others = [{**weights, "a": np.zeros((3, 2), np.float32)}, {**weights, "b": np.zeros(3)}, {"a": weights["a"]}]
    assert weights_sha256(dict(reversed(weights.items()))) == weights_sha256(weights)
    assert len({weights_sha256(each) for each in (weights, *others)}) == 4


@pytest.mark.parametrize(("minutes", "allowed"), [(9.0, False), (11.0, True)])
def test_a_limit_ends_a_score_after_its_first_passes(minutes: float, allowed: bool) -> None:
    """100 passes of 6 s, and 30 s to compile in the first."""
    now, told = 0.0, 0
    watched = within(minutes, lambda done, total: None, lambda: now)
    for number in range(1, 101):
        now += 36.0 if number == 1 else 6.0
        if number == 4 and not allowed:
            with pytest.raises(UserError, match=r"--minutes 9: by its first 3 passes the score takes 10:30"):
                watched(number, 100)
            return
        watched(number, 100)
        told += 1
    assert told == 100 and allowed


def test_a_limit_waits_for_seconds_worth_measuring_and_must_be_one() -> None:
    now = 0.0
    watched = within(0.001, lambda done, total: None, lambda: now)
    with pytest.raises(UserError, match="--minutes"):
        for number in range(1, 1000):
            now += 0.01
            watched(number, 1000)
    assert now == pytest.approx(LEAST_S, abs=0.03)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="must be above 0"):
            within(wrong, lambda done, total: None)
