"""No exhibit without a check that fails on it: the museum's modules, its catalogue and its README agree."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import tests.museum
from data.token_bytes import TokenBytes
from shared.cli import audit
from shared.cli.main import main
from shared.engine.oracle import Oracle
from shared.scoring.bits_per_byte import WindowPlan
from tests import ROOT
from tests.museum.accounting import plan_with_double_tail, plan_without_tail
from tests.museum.exhibits import EXHIBITS, Exhibit, score_failures, table_of_bytes

pytestmark = pytest.mark.slow

# What the modules define beside their exhibits.
HELPERS = {
    "accounting.WrappedScorer",
    "accounting.normalised",
    "dead_switch.flagged_loss",
    "dead_switch.without_qat",
    "ngrams.without_ngrams",
}
# Checks of a figure or a record rather than of a way to score.
NO_EXHIBIT = {
    *("positions", "plausibility", "initial_loss", "random_bytes"),
    *("adaptation", "run_data", "calibration_time"),
}
NO_EXHIBITS = {"exhibits", "fake_stream"}
README = Path(__file__).with_name("README.md")


def planted_names() -> set[str]:
    """Every public function and class that a module of the museum defines."""
    found = set()
    for module in pkgutil.iter_modules(tests.museum.__path__):
        if module.name in NO_EXHIBITS or module.name.startswith("test_"):
            continue
        loaded = importlib.import_module(f"tests.museum.{module.name}")
        for name, value in vars(loaded).items():
            is_own = getattr(value, "__module__", "") == loaded.__name__
            if is_own and not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
                found.add(f"{module.name}.{name}")
    return found


def test_every_piece_is_in_the_catalogue() -> None:
    names = [exhibit.name for exhibit in EXHIBITS]
    assert len(set(names)) == len(names)
    assert set(names) == planted_names() - HELPERS
    assert planted_names() >= HELPERS


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_an_exhibit_is_caught(exhibit: Exhibit) -> None:
    assert exhibit.caught_by and set(exhibit.caught_by) == set(exhibit.failing())


def test_every_check_has_an_exhibit() -> None:
    """Of those that docs/techniques.md 1.4 lists; the others are shown to fail beside their own tests."""
    page = (ROOT / "docs" / "techniques.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page.partition("### 1.4 ")[2].partition("### 1.5 ")[0], re.M)
    checks = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert checks - NO_EXHIBIT == {check for exhibit in EXHIBITS for check in exhibit.caught_by}


def test_honest_scores_and_tables_beside_them_pass() -> None:
    assert score_failures() == table_of_bytes(TokenBytes).failing() == []


@pytest.mark.parametrize(
    ("plan", "caught"), [(plan_with_double_tail, []), (plan_without_tail, ["coverage", "denominator"])]
)
def test_plans_of_windows_that_do_not_overlap(plan: WindowPlan, caught: list[str]) -> None:
    """No symbol can be counted twice there."""
    assert score_failures(plan=plan, stride=48) == caught


SCORERS = [exhibit for exhibit in EXHIBITS if exhibit.scorer]


def audited(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scorer: Any, words: list[str]) -> Any:
    """(exit status, names of the failed checks) of `bytetwin audit tiny` with scorer(spec, weights) in place."""
    monkeypatch.setattr(audit, "create_scorer", lambda _, spec, weights: scorer(spec, weights))
    changes = [word for override in words for word in ("--set", override)]
    status = main(["audit", "tiny", "--json", "--engine", "numpy", "--max-symbols", "2000", *changes])
    checks = json.loads(capsys.readouterr().out)["checks"]
    return status, {check["name"] for check in checks if not check["passed"]}


@pytest.mark.parametrize("exhibit", SCORERS, ids=lambda exhibit: exhibit.name)
def test_the_command_line_catches_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], exhibit: Exhibit
) -> None:
    """Whatever is wrong with a scorer shows in `bytetwin audit`, which ends with status 1."""
    status, failed = audited(monkeypatch, capsys, exhibit.scorer, list(exhibit.overrides))
    assert status == 1 and set(exhibit.caught_by) <= failed


@pytest.mark.parametrize("overrides", sorted({exhibit.overrides for exhibit in SCORERS}), ids=lambda each: each[-1])
def test_the_honest_model_beside_it_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...]
) -> None:
    assert audited(monkeypatch, capsys, Oracle, list(overrides)) == (0, set())


def test_the_readme_names_every_exhibit_and_its_checks() -> None:
    rows = {}
    for line in README.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| `(\w+\.)?(\w+)` \|.*\| (.+) \|$", line):
            rows[match[2]] = match[3]
    assert set(rows) == {exhibit.planted.__name__ for exhibit in EXHIBITS}
    for exhibit in EXHIBITS:
        words = re.findall(r"\w+", rows[exhibit.planted.__name__])
        assert set(exhibit.caught_by) <= set(words), exhibit.name
