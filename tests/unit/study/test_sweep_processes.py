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
from shared.study.places import ANYWHERE, own_cores, places
from shared.study.sweep import sweep
from tests import ROOT
from tests.processes import WAIT_S, started, wait_until
from tests.sweep_standin import compiled_graphs, observer, planned, variant


@contextlib.contextmanager
def swept(folder: Path, *labels: str, jobs: int = 1) -> Iterator[subprocess.Popen[str]]:
    """A sweep in a session of its own, as a terminal would start it. Its pipes are at their end when all of its
    processes are gone."""
    words = [sys.executable, "-m", "tests.sweep_standin", str(folder), *labels]
    with started(words, start_new_session=True, env={**os.environ, "JOBS": str(jobs)}) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_every_variant_is_compiled_in_a_process_of_its_own(tmp_path: Path) -> None:
    """In one process torch keeps graphs for a few: the next is refused there, and was once run uncompiled."""
    with swept(tmp_path, *(f"compiles-{number}" for number in range(3))) as process:
        output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, errors
    assert [tuple(run) for run in json.loads(output)] == [
        (f"compiles-{number}-seed0", "finished", "1 graphs") for number in range(3)
    ]
    pids = [(tmp_path / f"compiles-{number}-seed0.pid").read_text() for number in range(3)]
    assert len(set(pids)) == 3


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
    # The run beside it may save.
    plan, two = planned(["waits", "refuses", "trains-later"]), [ANYWHERE, ANYWHERE]
    with pytest.raises(RunError, match="the data is gone"):
        sweep(plan, "torch", tmp_path, observer, lambda number, run, before: None, two)
    assert (tmp_path / "waits-seed0.saved").exists() and not (tmp_path / "trains-later-seed0.pid").exists()


@pytest.mark.slow
def test_two_runs_at_a_time_each_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    cores, announced = own_cores(), list[tuple[int, str]]()
    where = places("2", 1, [{"CUDA_VISIBLE_DEVICES": name} for name in ("3", "5")])
    result = sweep(
        planned(["meets-a", "meets-b", "dies"]),
        "torch",
        tmp_path,
        observer,
        lambda number, run, before: announced.append((number, run.label)),
        where,
    )
    assert announced == [(1, "meets-a"), (2, "meets-b"), (3, "dies")]
    assert [run.status for run in result.runs] == ["finished", "finished", "failed"] and result.exit_status == 1
    shares = [list(place.cores) for place in where]
    assert [run.message for run in result.runs[:2]] == [f"GPU 3, cores {shares[0]}", f"GPU 5, cores {shares[1]}"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5" and own_cores() == cores


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_all", "status", "jobs"),
    [(signal.SIGINT, True, 130, 2), (signal.SIGTERM, False, 143, 1)],
    ids=["Ctrl-C on a terminal, two jobs", "SIGTERM to the sweep alone"],
)
def test_a_signal_counts_once_and_the_runs_may_save(
    tmp_path: Path, number: signal.Signals, to_all: bool, status: int, jobs: int
) -> None:
    waiting = [f"waits-{job}" for job in range(jobs)]
    with swept(tmp_path, *waiting, "trains", jobs=jobs) as process:
        for name in waiting:
            wait_until((tmp_path / f"{name}-seed0.pid").exists, "the run has begun", process)
        (os.killpg if to_all else os.kill)(process.pid, number)
        output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == status, errors
    stopped = [[f"{name}-seed0", "interrupted", "stopped"] for name in waiting]
    assert json.loads(output) == [*stopped, ["trains-seed0", "not started", ""]]
    assert errors == "" and all((tmp_path / f"{name}-seed0.saved").exists() for name in waiting)


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_by_name_stops_the_sweep(tmp_path: Path) -> None:
    with swept(tmp_path, "waits-0", "waits-1", "trains", jobs=2) as process:
        for name in ("waits-0", "waits-1"):
            wait_until((tmp_path / f"{name}-seed0.pid").exists, "the run has begun", process)
        os.kill(int((tmp_path / "waits-0-seed0.pid").read_text()), signal.SIGTERM)
        output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143, errors
    assert [status for _, status, _ in json.loads(output)] == ["interrupted", "interrupted", "not started"]
    assert (tmp_path / "waits-1-seed0.saved").exists()


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
