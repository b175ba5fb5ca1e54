"""A few hostile inputs of each kind, a few kills and a chain; `python -m tests.fuzz` tries thousands."""

from __future__ import annotations

import pytest

from tests.fuzz.chain import run_chains
from tests.fuzz.kill import CASES, run_kills
from tests.fuzz.worker import run_inputs

pytestmark = pytest.mark.slow

# Fewer of those that copy, train, pack and score: some fifteen seconds of one core in all.
COUNTS = {
    "artifact": 60,
    "artifact_2": 35,
    "coded": 55,
    "checkpoint": 35,
    "dataset": 45,
    "spec": 100,
    "run": 30,
    "cli": 65,
}
KILLS = 5
# Those that train nothing.
QUICK = ("pack", "record", "compress", "fit", "data import", "tokenizer encode")


@pytest.mark.parametrize("kind", COUNTS)
def test_hostile_input_is_refused_in_one_line_or_means_what_it_says(kind: str) -> None:
    tally = run_inputs(kind, 1, range(COUNTS[kind]))
    assert not tally.failures and tally.counts.total() == COUNTS[kind]
    assert min(tally.counts["refused"], tally.counts["accepted"]) >= 5, f"these inputs prove nothing: {tally}"


def test_a_killed_command_loses_nothing_and_works_when_it_is_given_again(capfd: pytest.CaptureFixture[str]) -> None:
    status = run_kills(KILLS, 1, cases=[case for case in CASES if case.command.startswith(QUICK)])
    assert status == 0, capfd.readouterr().out


def test_a_random_spec_goes_through_the_whole_chain(capfd: pytest.CaptureFixture[str]) -> None:
    """Patches of nine bytes, layers with a state between them and attention, codes by two-sided rounding."""
    status = run_chains(1, 1, only=5, links=("resume", "prove", "code"), engines=("torch",), server="preload")
    assert status == 0, capfd.readouterr().out
