"""Sampling: the right distribution, the right text, the same text for the same seed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.engine.oracle import Oracle
from shared.engine.window_stepper import WindowStepper
from shared.errors import UserError
from shared.model import random_weights
from shared.scoring.generate import decode_text, encode_prompt, sample
from shared.spec import Spec, VocabularySpec, load_spec
from tests.museum.accounting import WrappedScorer

SPEC = load_spec("tiny", ["model.num_layers=1"])
SPEC260 = load_spec("tiny", ["model.num_layers=1", "vocabulary.kind=byte260"])
BYTES = VocabularySpec()


class FixedScorer:
    """One distribution everywhere, and no score of its own; keeps the windows it was asked about."""

    def __init__(self, spec: Spec, probs: dict[int, float]) -> None:
        self.spec = spec
        self.row = np.full(spec.vocabulary.size, -30.0)
        for symbol, prob in probs.items():
            self.row[symbol] = np.log(prob)
        self.seen: list[np.ndarray] = []

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        self.seen.append(x.copy())
        return np.broadcast_to(self.row, (*x.shape, len(self.row)))

    def stepper(self, rows: int) -> WindowStepper:
        return WindowStepper(self, rows)


def oracle(spec: Spec = SPEC) -> Oracle:
    return Oracle(spec, random_weights(spec, 0))


def test_same_seed_same_symbols() -> None:
    first, again, other = (list(sample(oracle(), b"ab", 24, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 24


def test_padding_and_windows_do_not_change_the_distribution() -> None:
    """Greedy symbols against a loop that scores the bare context, padded only to a whole patch."""
    model = oracle()
    found = list(sample(model, b"the ", 20, temperature=0.0))
    context = list(b"the ")
    for symbol in found:
        padded = context + [7] * (4 - len(context) % 4)
        assert symbol == int(np.argmax(model.log_probs(np.array([padded]))[0, len(context)]))
        context.append(symbol)


class Asked(WrappedScorer):
    """Keeps its answers."""

    def __init__(self, inner: Oracle) -> None:
        super().__init__(inner)
        self.answers: list[np.ndarray] = []

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        self.answers.append(log_probs)
        return log_probs


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.attention.ntk_positions=4"],
        ["model.attention.ntk_positions=12", "model.patch_size=4"],
        ["model.attention.window=3", "model.smear_gate=v1"],
        ["model.mixers=['mamba2']", "model.state_dim=4"],
    ],
)
def test_log_probabilities_are_those_that_are_scored(overrides: list[str]) -> None:
    """For every length of context, against one window of seq_len as scoring reads it."""
    spec = load_spec("tiny", ["model.num_layers=1", *overrides])
    scorer = oracle(spec)
    asked, prompt = Asked(scorer), list(b"th")
    text = prompt + list(sample(asked, prompt, spec.model.seq_len - len(prompt), seed=1))
    scored = scorer.log_probs(np.array([text], np.int32))[0]
    for position, answer in enumerate(asked.answers, start=len(prompt)):
        np.testing.assert_allclose(answer[0, position], scored[position], rtol=0, atol=1e-9)


def test_few_window_lengths_and_the_newest_context() -> None:
    scorer = FixedScorer(SPEC, {65: 0.5, 66: 0.5})
    prompt = list(range(100))
    produced = list(sample(scorer, prompt, 150, seed=3))
    lengths = [x.shape[1] for x in scorer.seen]
    assert len(set(lengths)) <= 3 and max(lengths) == SPEC.model.seq_len
    history = prompt + produced
    for index, x in enumerate(scorer.seen):
        context = history[: len(prompt) + index]
        used = next(n for n in range(SPEC.model.seq_len, 0, -1) if x[0, :n].tolist() == context[-n:])
        assert used >= min(len(context), SPEC.model.seq_len // 2)
        assert (len(context) - used) % SPEC.model.patch_size == 0


def test_frequencies_follow_the_probabilities_temperature_sharpens_and_top_p_cuts() -> None:
    probs = {65: 0.6, 66: 0.3, 67: 0.1}

    def shares(**how: float) -> list[float]:
        drawn = list(sample(FixedScorer(SPEC, probs), [], 3000, seed=1, **how))
        return [drawn.count(symbol) / 3000 for symbol in probs]

    for share, prob in zip(shares(), probs.values(), strict=True):
        # Four standard deviations of a binomial share.
        assert abs(share - prob) < 4 * np.sqrt(prob * (1 - prob) / 3000)
    assert shares(temperature=0.0) == [1.0, 0.0, 0.0]
    assert shares(temperature=0.5)[0] == pytest.approx(0.36 / 0.46, abs=0.04)
    assert shares(top_p=0.59) == [1.0, 0.0, 0.0]
    assert shares(top_p=0.7) == pytest.approx([2 / 3, 1 / 3, 0.0], abs=0.05)


def test_special_symbols_are_never_drawn_and_a_document_start_ends_the_text() -> None:
    scorer = FixedScorer(SPEC260, {0: 0.5, 2: 0.3, 3: 0.1, 70: 0.1})
    assert set(sample(scorer, [], 200, seed=0)) == {70}
    starts = FixedScorer(SPEC260, {1: 0.05, 70: 0.95})
    produced = list(sample(starts, [], 1000, seed=0))
    assert 0 < len(produced) < 1000 and set(produced) == {70}


def test_prompts_begin_a_document() -> None:
    assert encode_prompt(BYTES, b"Az") == [65, 122]
    assert encode_prompt(SPEC260.vocabulary, b"Az") == [1, 69, 126]


@given(st.text(max_size=60), st.sampled_from([BYTES, SPEC260.vocabulary]))
def test_characters_come_whole(text: str, vocabulary: VocabularySpec) -> None:
    symbols = [byte + vocabulary.byte_offset for byte in text.encode()]
    assert "".join(decode_text(symbols, vocabulary)) == text
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in decode_text(symbols, vocabulary))


@given(st.binary(max_size=60))
def test_any_bytes_give_text(content: bytes) -> None:
    assert "".join(decode_text(content, BYTES)) == content.decode("utf-8", errors="replace")


def test_text_streams_as_it_is_drawn() -> None:
    symbols = itertools.chain(b"ab", itertools.repeat(ord("c")))
    assert list(itertools.islice(decode_text(symbols, BYTES), 4)) == ["a", "b", "c", "c"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top-p 0.0"),
        ({"top_p": 1.5}, "top-p 1.5"),
    ],
)
def test_values_out_of_range(how: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(oracle(), [], 4, **how)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="number of symbols -1"):
        sample(oracle(), [], -1)
