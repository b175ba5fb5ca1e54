"""Several processes as one run, from the command line: torchrun and gloo, mlx.launch and its ring."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shared.engine.leader import check_alike
from shared.engine.package import COMPILED_FOLDER, engine_package
from shared.engine.ranks import OneRank
from shared.engine.registry import ENGINES
from shared.errors import RunError, UserError
from shared.spec import load_spec
from shared.tolerances import RANKS_LOSS_ABS
from shared.training.run import train_run
from tests import ROOT
from tests.command_line import set_words
from tests.fake_training import quiet_observer
from tests.processes import WAIT_S, alive, children, run_python, started, wait_until

# Every test here starts processes or trains several runs.
pytestmark = pytest.mark.slow

STEPS = 50
SMALL = ["training.compile=false", f"training.steps={STEPS}"]
SMALL += ["evaluation.val_symbols=1024", "evaluation.batch_symbols=16384"]
TINY = ["tiny", *set_words(*SMALL)]
FREQUENT = ["training.log_every_steps=1", "training.checkpoint_every_steps=10"]
OFTEN = set_words(*FREQUENT)
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


def torchrun(ranks: int, arguments: list[str], folder: Path) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", "--"]
    return [*launcher, "cuda_train", *arguments, "--runs-dir", str(folder)]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **QUIET, **more}


def train(ranks: int, name: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = torchrun(ranks, [*TINY, *OFTEN, "--run", name, *more], folder)
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=WAIT_S)


def train_here(name: str, folder: Path, *, resume: bool = False) -> None:
    """One rank is a process without a launcher: this one."""
    result = train_run(
        load_spec("tiny", [*SMALL, *FREQUENT]),
        "torch",
        quiet_observer(),
        runs_dir=folder,
        run_name=name,
        resume=resume,
        finish=False,
    )
    assert result.outcome.step == STEPS


def at_step(step: int, name: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    """A run of two ranks that has logged as many steps."""
    command = torchrun(2, [*TINY, *OFTEN, "--run", name, "--no-finish", *more], folder)
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = folder / name / "metrics.jsonl"
    wait_until(lambda: log.exists() and f'"step": {step}' in log.read_text(), f"step {step}", process)
    return process


def losses(folder: Path, name: str) -> np.ndarray:
    """Training loss of each logged step, in nats."""
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, len(steps) + 1))
    return np.array([event["nats_per_symbol"] for event in steps])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of one rank, `one`, and one of two, `two`."""
    path = tmp_path_factory.mktemp("runs")
    train_here("one", path)
    result = train(2, "two", path, "--no-finish")
    assert result.returncode == 0, result.stderr
    return path


def test_the_number_of_ranks_does_not_change_the_loss_curve(folder: Path):
    result = train(4, "four", folder)
    assert result.returncode == 0, result.stderr
    one = losses(folder, "one")
    assert len(one) == STEPS and one[-1] < one[0] - 1.0
    for name in ("two", "four"):
        assert np.abs(losses(folder, name) - one).max() <= RANKS_LOSS_ABS
    # Four ranks also packed and scored, and only rank 0 wrote and spoke.
    # (gloo's own "Warning: unable to resolve hostname" is no Python warning.)
    assert result.stderr.count("run finished") == 1 and not re.search(r"\w+Warning:", result.stderr)
    score = json.loads((folder / "four" / "score.json").read_text())
    assert score["weights"] == "packed" and all(check["passed"] for check in score["audit"]["checks"])
    # Beside the runs lies what torch may compile, unless the environment names another folder for it.
    assert {path.name for path in folder.iterdir()} - {COMPILED_FOLDER} == {"four", "one", "two"}


def test_a_run_goes_on_after_a_killed_rank_and_with_fewer(folder: Path):
    """Killed, resumed by as many ranks, stopped by a signal, and resumed by one."""
    process = at_step(14, "stopped", folder)
    os.kill(rank_processes(process.pid)[1], signal.SIGKILL)
    process.communicate(timeout=WAIT_S)
    assert process.returncode != 0
    assert not rank_processes(process.pid)
    process = at_step(20, "stopped", folder, "--resume")
    # A spot notice: all ranks get it, rank 0 saves what it has.
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=WAIT_S)
    assert "resume with" in output
    saved = max(int(path.stem.split("-")[1]) for path in (folder / "stopped" / "checkpoints").glob("step-*.json"))
    assert saved >= 20 and f"stopped by a signal after step {saved}" in output
    train_here("stopped", folder, resume=True)
    found = losses(folder, "stopped")
    assert np.array_equal(found[:saved], losses(folder, "two")[:saved])
    assert np.abs(found - losses(folder, "one")).max() <= RANKS_LOSS_ABS


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path: Path):
    result = train(2, "odd", tmp_path, "--set", "training.batch_symbols=448")
    told = [line for line in result.stderr.splitlines() if line.startswith("bytetwin:")]
    assert result.returncode != 0 and len(told) == 1
    assert "training.batch_symbols = 448: its 7 rows" in told[0] and "must divide 7" in told[0]
    assert not list(tmp_path.iterdir())


def test_a_port_in_use_is_one_line(tmp_path: Path):
    with socket.socket() as taken:
        # On every address: on a Mac a server may open a port on all of them that another has taken on one.
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        result = subprocess.run(
            [sys.executable, "-m", "cuda_train", *TINY, "--runs-dir", str(tmp_path)],
            env=environment(**place),
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
    told = [line for line in result.stderr.splitlines() if line.startswith("bytetwin:")]
    assert result.returncode == 2 and len(told) == 1 and "Traceback" not in result.stderr
    assert f"rank 0 cannot join the others at 127.0.0.1:{port}" in told[0]


def test_too_many_ranks_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "65")
    with pytest.raises(UserError, match="65 ranks: at most 64 are allowed"):
        engine_package("torch").connect()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_mixed_devices_are_refused_on_every_rank(rank: int):
    names = [
        "NVIDIA H100 80GB HBM3 (CUDA 13.0)",
        "NVIDIA H100 80GB HBM3 (CUDA 13.0)",
        "NVIDIA A100-SXM4-80GB (CUDA 13.0)",
    ]

    class Others(OneRank):
        def gather(self, values: np.ndarray) -> list[np.ndarray]:
            padded = [np.frombuffer(name.encode().ljust(len(values), b"\0"), np.uint8) for name in names]
            assert np.array_equal(values, padded[rank])
            return padded

    with pytest.raises(UserError, match=r"rank 0 runs on NVIDIA H100 .* and rank 2 on NVIDIA A100"):
        check_alike(Others(), names[rank])
    names[2] = names[0]
    check_alike(Others(), names[rank])


def launch_mlx(ranks: int, *words: str) -> str:
    """What Python prints in that many processes of one ring."""
    launch = Path(sys.executable).with_name("mlx.launch")
    command = [launch, "-n", str(ranks), "--backend", "ring", "--starting-port", str(free_port()), "--", sys.executable]
    with full_pipe() as pipe:
        result = subprocess.run(
            [*command, *words], env=environment(), stdin=pipe, capture_output=True, text=True, timeout=WAIT_S
        )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_two_mlx_processes_train_as_one(folder: Path):
    launch_mlx(2, "-m", "mlx_train", *TINY, *OFTEN, "--run", "macs", "--no-finish", "--runs-dir", str(folder))
    assert np.abs(losses(folder, "macs") - losses(folder, "one")).max() <= RANKS_LOSS_ABS


# Rank 0 is late by two seconds, of which a rank that asks without a pause would compute.
LATE = """
import time
from mlx_train import distributed
ranks = distributed.connect()
begin = time.process_time()
if ranks.rank == 0:
    time.sleep(2.0)
content = ranks.broadcast(b"late" if ranks.rank == 0 else b"")
print("waited", content == b"late", time.process_time() - begin, flush=True)
"""


def test_mlx_ranks_that_wait_for_rank_0_leave_the_cores_to_others(tmp_path: Path):
    script = tmp_path / "late.py"
    script.write_text(LATE)
    waited = re.findall(r"waited (\w+) (\S+)", launch_mlx(3, str(script)))
    assert [same for same, _ in waited] == ["True"] * 3
    assert max(float(seconds) for _, seconds in waited) < 0.25


def test_mlx_processes_that_cannot_meet_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hosts = tmp_path / "hosts.json"
    hosts.write_text('[["127.0.0.1:1"]]')
    monkeypatch.setenv("MLX_RANK", "3")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    with pytest.raises(RunError, match="rank 3 cannot reach the other ranks"):
        engine_package("mlx").connect()


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """Standard input for mlx.launch: as much as the pipes to its processes hold, and no end. While they take more, it
    looks after them without a pause and burns a core, most of the test's time."""
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        os.write(write, b"\n" * 2**16)
        yield read
    finally:
        os.close(read)
        os.close(write)


def rank_processes(launcher: int) -> list[int]:
    """The launcher's children that run the engine, in the order of their ranks, in which they are started."""
    return [pid for pid, command in children(launcher) if "cuda_train" in command]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


ORPHAN = """
import signal, sys, time
from pathlib import Path
from shared.engine.ranks import stop_with_parent

def save(number, frame):
    Path(sys.argv[1]).touch()
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, save)
stop_with_parent(0.02)
print("ready", flush=True)
time.sleep(600)
"""

PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
"""


def test_a_rank_whose_launcher_was_killed_saves_and_ends(tmp_path: Path) -> None:
    with started([sys.executable, "-c", PARENT, ORPHAN, str(tmp_path / "saved")]) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
        ((rank, _),) = children(parent.pid)
        parent.kill()
        wait_until(lambda: not alive(rank), "the rank ends")
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_launched_rank_watches_its_launcher(engine: str) -> None:
    package, variable = ENGINES[engine].package, ENGINES[engine].rank_variable
    code = f"import threading, {package}.__main__; print([thread.name for thread in threading.enumerate()])"
    assert "parent" in run_python(code, **{variable: "0"})
