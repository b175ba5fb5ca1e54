"""tests/mac.sh and tests/gpu.sh, the checks for a person with a Mac or a GPU, as far as they run anywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.runs.metrics import MetricsLog
from tests import ROOT
from tests.curves import compare
from tests.processes import WAIT_S


def checks(script: str, folder: Path, *numbers: str, **environment: str) -> tuple[int, str]:
    """(status, the file to send) of some of the checks."""
    results = folder / "results.txt"
    places = {
        "VENV": sys.prefix,
        "RUNS": str(folder / "runs"),
        "RESULTS": str(results),
        "PATIENCE": "9",
    }
    command = ["bash", str(ROOT / "tests" / script), *numbers]
    done = subprocess.run(
        command, env={**os.environ, **places, **environment}, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.stdout.endswith(f"Please send the file {results}\n"), done.stderr
    return done.returncode, results.read_text()


def write_program(path: Path, line: str) -> None:
    """A shell script of one line."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.mark.slow
def test_checks_write_what_they_found_into_one_file(tmp_path: Path) -> None:
    status, text = checks("mac.sh", tmp_path, "1", "4", "5", OMP_NUM_THREADS="1")
    *_, first, second, third, _ = text.split("\n")[:-1]
    assert status == 0, text
    assert first.startswith("1. the machine: ok, ")
    assert second.startswith("4. float32 products: ok, ")
    assert third.startswith("5. repeatable gradients: ok, ")
    assert "with MLX_ENABLE_TF32=0: " in text and ", ours 1\n" in text


@pytest.mark.parametrize(
    ("script", "number", "title"),
    [("mac.sh", "5", "repeatable gradients"), ("gpu.sh", "9", "the rest of the benchmark")],
)
def test_a_check_that_fails_is_counted(tmp_path: Path, script: str, number: str, title: str) -> None:
    write_program(tmp_path / "bin" / "python", "exit 3")
    status, text = checks(script, tmp_path, number, VENV=str(tmp_path))
    assert status == 1 and f"{number}. {title}: FAILED with status 3, " in text


@pytest.mark.parametrize("script", ["mac.sh", "gpu.sh"])
def test_without_numbers_every_check_runs(tmp_path: Path, script: str) -> None:
    """Each is counted, however it ends: here there is nothing to run."""
    tools = {name: shutil.which(name) for name in ("bash", "dirname", "mkdir", "tee", "tr", "uname", "head")}
    for name, path in tools.items():
        assert path is not None
        (tmp_path / name).symlink_to(path)
    write_program(tmp_path / "sleep", "exit 0")
    status, text = checks(script, tmp_path, VENV=str(tmp_path / "none"), PATH=str(tmp_path))
    titles = re.findall(r'^    check (\d+) "([^"]+)"', (ROOT / "tests" / script).read_text(), re.MULTILINE)
    summary = text.strip().split("\n")[-len(titles) :]
    assert status == 1 and len(titles) >= 9
    for (number, title), line in zip(titles, summary, strict=True):
        assert line.startswith(f"{number}. {title}: "), text


@pytest.mark.parametrize(("change", "equal"), [(0.0, True), (1e-12, False)])
def test_curves_are_compared_to_the_last_bit(tmp_path: Path, change: float, equal: bool) -> None:
    for name, last in (("a", 1.0), ("b", 1.0 + change)):
        (tmp_path / name).mkdir()
        with MetricsLog(tmp_path / name / "metrics.jsonl", after_step=0) as log:
            for step, nats in enumerate((*np.linspace(3.0, 2.0, 4), last)):
                log.append("step", step + 1, nats_per_symbol=float(nats))
    if equal:
        compare(str(tmp_path / "a"), str(tmp_path / "b"))
    else:
        with pytest.raises(SystemExit):
            compare(str(tmp_path / "a"), str(tmp_path / "b"))
