"""The check for later text, on functions that score by hand: what it finds, where it looks, and what it allows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from shared import tolerances
from shared.scoring import later_text
from shared.scoring.checks import Check
from shared.scoring.later_text import check_later_text
from shared.scoring.windows import plan_windows
from tests.museum.fake_stream import FakeStream
from tests.techniques import tiny

CHUNK = 32
SPEC = tiny(
    "model.seq_len=16",
    "evaluation.stride_symbols=16",
    "evaluation.adaptation.kind=score_first",
    f"evaluation.adaptation.chunk_symbols={CHUNK}",
)
TEXT = [bytes(np.random.default_rng(seed).integers(97, 105, 300).astype(np.uint8)) for seed in range(5)]
# The excerpt takes these shares of four chunks, and one symbol, of each document.
STARTS = np.cumsum([0, *(int(4 * CHUNK * share) + 1 for share in (0.55, 0.2, 0.45, 0.3, 0.15))]).tolist()
LAST = STARTS.pop() - 1
LIKELY = {CHUNK // 2, CHUNK, CHUNK + 1, 2 * CHUNK - 1, STARTS[1], STARTS[-1], LAST}
Nats = Callable[[np.ndarray], np.ndarray]


def check(nats_of: Nats, seconds: float = 0.0, leave_out: int | None = None) -> Check:
    """The check of a score whose windows are counted from the last to the first, by `nats_of` all symbols."""

    def score_text(scorer: object, stream: Any, *, seen: Callable[..., None]) -> None:
        nats = nats_of(stream.read(0, stream.num_symbols))
        for window in reversed(plan_windows(stream.num_symbols, 16, 16)):
            if leave_out is None or not window.count_start <= leave_out < window.count_stop:
                seen(window, nats[window.count_start : window.count_stop])

    return check_later_text(
        cast(Any, score_text), cast(Any, SimpleNamespace(spec=SPEC)), FakeStream(TEXT), seconds=seconds
    )


def honest(symbols: np.ndarray) -> np.ndarray:
    return np.cumsum(symbols) % 7.0


def leak_from(cut: int) -> Nats:
    """The symbol before `cut` is scored by the one at it."""

    def nats(symbols: np.ndarray) -> np.ndarray:
        found = honest(symbols)
        found[cut - 1] -= 0.01 * symbols[cut]
        return found

    return nats


def test_an_honest_score_passes_after_the_cuts_that_are_always_made() -> None:
    found = check(honest)
    assert found.passed and (found.measured, found.limit) == (0.0, tolerances.CAUSALITY_ABS)
    assert f"3 cuts in {LAST + 1} symbols" in found.detail


@pytest.mark.parametrize("cut", sorted(LIKELY))
def test_a_leak_across_every_border_is_found_and_named(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(later_text, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    found = check(leak_from(cut), seconds=5.0)
    assert not found.passed and found.measured >= 0.01 - 1e-9
    assert f" at symbol {cut - 1} when text from symbol {cut} on changed" in found.detail
    # Three cuts before the clock is read, then one in each second: the borders come first.
    assert f"{len(LIKELY)} cuts" in found.detail


def test_a_leak_from_further_ahead_is_found_by_an_earlier_cut() -> None:
    """Everything behind a cut changes, not only the symbol at it."""

    def nats(symbols: np.ndarray) -> np.ndarray:
        found = honest(symbols)
        found[CHUNK // 2 - 1] -= 0.01 * symbols[CHUNK // 2 + 5 : LAST].sum()
        return found

    assert f"when text from symbol {CHUNK // 2} on changed" in check(nats).detail


def test_what_two_runs_differ_by_is_allowed_three_times() -> None:
    for factor, passed in ((2.9, True), (3.1, False)):
        # The first two runs are of the same text.
        noise = itertools.chain([0.0, 0.5], itertools.repeat(0.5 * factor))
        found = check(lambda symbols, noise=noise: honest(symbols) + next(noise))
        assert found.passed == passed and found.limit == pytest.approx(tolerances.CAUSALITY_ABS + 1.5)


def test_symbols_that_are_not_counted_are_an_error() -> None:
    with pytest.raises(AssertionError, match="were not counted"):
        check(honest, leave_out=20)
