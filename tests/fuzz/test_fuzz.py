"""A few hostile inputs of each kind, and a few kills; `python -m tests.fuzz` tries thousands."""

from __future__ import annotations

import pytest

from tests.fuzz.kill import CASES, run_kills
from tests.fuzz.worker import KINDS, run_inputs

COUNT, KILLS = 150, 6
# Those that need no training, so that the short form is short.
QUICK = ("pack", "record --replace", "fit", "data import --replace", "tokenizer encode")


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_refused_in_one_line_or_means_what_it_says(kind: str) -> None:
    tally = run_inputs(kind, 1, range(COUNT))
    assert not tally.failures and tally.counts.total() == COUNT
    assert min(tally.counts["refused"], tally.counts["accepted"]) >= 5, f"these inputs prove nothing: {tally}"


@pytest.mark.slow
def test_a_killed_command_loses_nothing_and_works_when_it_is_given_again(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_kills(KILLS, 1, cases=[case for case in CASES if case.name in QUICK]) == 0, capfd.readouterr().out
