"""tests/mac.sh, the checks for a person with a Mac, as far as another machine can run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.runs.metrics import MetricsLog
from tests import ROOT
from tests.mac_checks import curves
from tests.processes import WAIT_S


def checks(folder: Path, *numbers: str, **environment: str) -> tuple[int, str]:
    """(status, the file to send) of some of the checks."""
    results = folder / "results.txt"
    places = {
        "BIN": str(Path(sys.executable).parent),
        "RUNS": str(folder / "runs"),
        "RESULTS": str(results),
        "PATIENCE": "9",
    }
    places["PATIENCE"] = "9"
    command = ["bash", str(ROOT / "tests" / "mac.sh"), *numbers]
    done = subprocess.run(
        command, env={**os.environ, **places, **environment}, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.stdout.endswith(f"Please send the file {results}\n"), done.stderr
    return done.returncode, results.read_text()


@pytest.mark.slow
def test_checks_write_what_they_found_into_one_file(tmp_path: Path) -> None:
    status, text = checks(tmp_path, "1", "4", "5", OMP_NUM_THREADS="1")
    *_, first, second, third, _ = text.split("\n")[:-1]
    assert status == 0, text
    assert first.startswith("1. the machine: ok, ")
    assert second.startswith("4. float32 products: ok, ")
    assert third.startswith("5. repeatable gradients: ok, ")
    assert "with MLX_ENABLE_TF32=0: " in text and ", ours 1\n" in text


def test_a_check_that_fails_is_counted(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    status, text = checks(tmp_path, "5", BIN=str(tmp_path))
    assert status == 1 and "5. repeatable gradients: FAILED with status 3, " in text


@pytest.mark.parametrize(("change", "equal"), [(0.0, True), (1e-12, False)])
def test_curves_are_compared_to_the_last_bit(tmp_path: Path, change: float, equal: bool) -> None:
    for name, last in (("a", 1.0), ("b", 1.0 + change)):
        (tmp_path / name).mkdir()
        with MetricsLog(tmp_path / name / "metrics.jsonl", after_step=0) as log:
            for step, nats in enumerate((*np.linspace(3.0, 2.0, 4), last)):
                log.append("step", step + 1, nats_per_symbol=float(nats))
    if equal:
        curves(str(tmp_path / "a"), str(tmp_path / "b"))
    else:
        with pytest.raises(SystemExit):
            curves(str(tmp_path / "a"), str(tmp_path / "b"))
