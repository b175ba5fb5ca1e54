"""The byte budget: counted code and entropy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.artifact import budget
from shared.artifact.budget import budget_report, code_bytes, entropy_bits
from shared.engine.registry import ENGINES
from shared.script.build import training_script
from shared.spec import load_spec

SPEC = load_spec("tiny")


@pytest.mark.slow
def test_the_code_is_the_script_that_trains():
    """The whole file, with its head and the spec in it; what trains nothing is not counted as less."""
    counted = {engine: code_bytes(engine, SPEC) for engine in ENGINES}
    assert counted == {engine: len(training_script(engine, SPEC)) for engine in ENGINES}
    assert min(counted.values()) > 50_000
    assert code_bytes("numpy", SPEC) == code_bytes(None, SPEC) == max(counted.values())
    longer = load_spec("tiny", ["training.seed=2026"])
    assert code_bytes("torch", longer) == counted["torch"] + len("seed = 2026\n")


def test_a_script_counts_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "train.py"
    script.write_bytes(b"x" * 1234)
    monkeypatch.setattr(budget, "running_script", lambda: script)
    assert code_bytes("torch", SPEC) == code_bytes(None, SPEC) == 1234


def test_a_report_adds_code_and_artifact(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(budget, "code_bytes", lambda engine, spec: 250)
    spec = load_spec("tiny", ["budget.total_bytes=1250"])
    report = budget_report(1000, "torch", spec)
    assert (report.code_bytes, report.total_bytes, report.limit_bytes, report.fits) == (250, 1250, 1250, True)
    assert not budget_report(1001, "torch", spec).fits


def test_entropy_of_known_distributions():
    assert entropy_bits(np.zeros((3, 4), np.int8)) == 0.0
    assert entropy_bits(np.array([], np.int8)) == 0.0
    assert entropy_bits(np.array([[-128, 127], [127, -128]], np.int8)) == 1.0
    assert entropy_bits(np.arange(-128, 128).astype(np.int8)) == 8.0
    assert entropy_bits(np.array([0, 0, 0, 1], np.int8)) == pytest.approx(0.75 * np.log2(4 / 3) + 0.5, rel=1e-12)
