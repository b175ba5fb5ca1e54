"""Every run of a sweep is a process of its own: what it starts with, how it ends, and what a signal does to both.

The sweeps are tests/sweep_standin.py: real processes whose runs train little or nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.engine.package import create_engine
from shared.errors import RunError
from shared.study.sweep import sweep
from tests import ROOT
from tests.processes import WAIT_S, started, wait_until
from tests.sweep_standin import compiled_graphs, observer, planned, variant


@contextlib.contextmanager
def swept(folder: Path, *labels: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a session of its own, as a terminal would start it. Its pipes are at their end when all of its
    processes are gone."""
    words = [sys.executable, "-m", "tests.sweep_standin", str(folder), *labels]
    with started(words, start_new_session=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_ten_variants_are_all_compiled(tmp_path: Path) -> None:
    """More than torch keeps graphs for in one process: there the ninth is refused, and was once run uncompiled."""
    with swept(tmp_path, *(f"compiles-{number}" for number in range(10))) as process:
        output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors
    assert [tuple(run) for run in json.loads(output)] == [
        (f"compiles-{number}-seed0", "finished", "1 graphs") for number in range(10)
    ]
    pids = [(tmp_path / f"compiles-{number}-seed0.pid").read_text() for number in range(10)]
    assert len(set(pids)) == 10


@pytest.mark.slow
def test_one_model_more_than_torch_keeps_graphs_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", torch.compile)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        assert [compiled_graphs(variant(number)) for number in range(2)] == [1, 1]
        with pytest.raises(RunError, match="would run the next one uncompiled: use a process for") as caught:
            compiled_graphs(variant(2))
        # The scores of a third model are another function, for which there is a graph left.
        engine = create_engine("torch", variant(2))
        assert np.isfinite(engine.score(np.zeros((1, 64), np.int32))).all()
    assert "the training loss" in str(caught.value) and "\n" not in str(caught.value)
    assert not torch._dynamo.config.fail_on_recompile_limit_hit
    torch._dynamo.reset()


@pytest.mark.slow
def test_runs_end_each_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One is killed, one breaks, one finishes, and one is told that its input is bad, which ends the sweep."""
    monkeypatch.syspath_prepend(str(ROOT))
    plan = planned(["dies", "breaks", "trains"])
    result = sweep(plan, "torch", tmp_path, observer, lambda number, run, before: None)
    assert result.exit_status == 1
    dead, broken, trained = result.runs
    assert dead.status == "failed" and dead.message.startswith("its process was killed by SIGKILL")
    assert broken.status == "failed" and broken.message == "MemoryError: no memory for the model"
    assert trained.status == "finished" and int(trained.message) != os.getpid()
    errors = capfd.readouterr().err
    assert errors.count("Traceback") == 1 and "and a second line" in errors
    with pytest.raises(RunError, match="the data is gone"):
        sweep(planned(["refuses", "trains"]), "torch", tmp_path, observer, lambda number, run, before: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_all", "status"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)],
    ids=["Ctrl-C on a terminal", "SIGTERM to the sweep alone"],
)
def test_a_signal_counts_once_and_the_run_may_save(
    tmp_path: Path, number: signal.Signals, to_all: bool, status: int
) -> None:
    with swept(tmp_path, "waits", "trains") as process:
        wait_until((tmp_path / "waits-seed0.pid").exists, "the run has begun", process)
        (os.killpg if to_all else os.kill)(process.pid, number)
        output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == status, errors
    assert json.loads(output) == [["waits-seed0", "interrupted", "stopped"], ["trains-seed0", "not started", ""]]
    assert errors == "" and (tmp_path / "waits-seed0.saved").exists()


@pytest.mark.slow
def test_a_second_signal_ends_both_at_once(tmp_path: Path) -> None:
    with swept(tmp_path, "hangs", "trains") as process:
        wait_until((tmp_path / "hangs-seed0.pid").exists, "the run has begun", process)
        process.send_signal(signal.SIGINT)
        wait_until((tmp_path / "hangs-seed0.noticed").exists, "the signal is noticed", process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_S)
    assert process.returncode == 130


@pytest.mark.slow
def test_a_run_whose_sweep_is_killed_saves_and_ends(tmp_path: Path) -> None:
    with swept(tmp_path, "waits", "trains") as process:
        wait_until((tmp_path / "waits-seed0.pid").exists, "the run has begun", process)
        process.kill()
        process.communicate(timeout=WAIT_S)
    assert (tmp_path / "waits-seed0.saved").exists() and not (tmp_path / "trains-seed0.pid").exists()
