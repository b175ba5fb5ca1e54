"""`train --ranks N`: processes started together end together, with one exit status and one voice.

The ranks here are a small program in place of the engine's `python -m cuda_train`: what is tested is the launcher.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from cuda_train import launch as launcher
from cuda_train.distributed import contact
from shared.cli import train
from shared.cli.main import main
from shared.errors import RanksError, UserError
from tests import ROOT
from tests.processes import WAIT_S, alive, wait_until

# Every test here starts processes or trains several runs.
pytestmark = pytest.mark.slow

# Ranks that wait to be ended: longer than a test does.
FOR_EVER_S = 2 * WAIT_S

LAUNCHER = """
import sys
sys.path.insert(0, {root!r})
from cuda_train.launch import launch
sys.exit(launch(sys.argv[3:], int(sys.argv[1]), int(sys.argv[2]) or None))
"""

RANK = """
import os, signal, sys, time
from pathlib import Path
from typing import Any

rank, action = int(os.environ["RANK"]), sys.argv[1]

def mark(name):
    unfinished = Path(f".{name}-{rank}")
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(f"{name}-{rank}")

def save(number, frame):
    mark("signalled")
    time.sleep(0.3)
    mark("saved")
    sys.exit(128 + number)

if action == "train":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, save)
    mark("ready")
    time.sleep(FOR_EVER_S)
elif action == "fail":
    if rank == 0:
        print("bytetwin: batch_symbols 512 cannot be shared by 3 ranks", file=sys.stderr)
        sys.exit(2)
    time.sleep(FOR_EVER_S)
elif action == "lose":
    mark("ready")
    if rank == 1:
        while not (Path("ready-0").exists() and Path("ready-2").exists()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(FOR_EVER_S)
elif action == "show":
    if rank == 0:
        names = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS")
        print(sys.argv[2:], [os.environ[name] for name in names], sys.stderr.isatty())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which `python -m cuda_train` is the program above."""
    package = tmp_path / "work" / "cuda_train"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(f"FOR_EVER_S = {FOR_EVER_S}\n{RANK}")
    (tmp_path / "launcher.py").write_text(LAUNCHER.format(root=str(ROOT)))
    return tmp_path / "work"


def words(folder: Path, ranks: int, *action: str, port: int = 0) -> list[str]:
    return [sys.executable, str(folder.parent / "launcher.py"), str(ranks), str(port), *action]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "OMP_NUM_THREADS")}
    return {**kept, **changes}


def started(folder: Path, ranks: int, *action: str, port: int = 0) -> subprocess.Popen[str]:
    command, pipe = words(folder, ranks, *action, port=port), subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment(), stdout=pipe, stderr=pipe, text=True)


def finished(folder: Path, ranks: int, *action: str, port: int = 0) -> subprocess.CompletedProcess[str]:
    with started(folder, ranks, *action, port=port) as process:
        output, errors = process.communicate(timeout=WAIT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def test_ranks_get_their_words_and_nothing_else_is_printed(folder: Path) -> None:
    result = finished(folder, 2, "show", "a b", "--set", "x.y=1")
    assert result.returncode == 0 and result.stderr == ""
    threads = max(1, (os.cpu_count() or 1) // 2)
    assert result.stdout == f"{['a b', '--set', 'x.y=1']} {['2', '0', '127.0.0.1', str(threads)]} False\n"


@pytest.mark.parametrize(("gpus", "ranks", "alone"), [(8, 8, True), (8, 2, True), (0, 2, False)])
def test_a_rank_sees_its_gpu_alone(monkeypatch: pytest.MonkeyPatch, gpus: int, ranks: int, alone: bool) -> None:
    configs: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(launcher, "elastic_launch", lambda config, _: configs.append(config) or (lambda *_: None))
    assert launcher.launch(["tiny"], ranks) == 0
    assert [config.virtual_local_rank for config in configs] == [alone]


def test_rank_0_writes_to_the_terminal_itself(folder: Path) -> None:
    """The live view needs a terminal that can redraw, not a copy of lines."""
    main_end, terminal = pty.openpty()
    with os.fdopen(main_end, "rb", buffering=0), os.fdopen(terminal, "wb", buffering=0) as stderr:
        result = subprocess.run(
            words(folder, 2, "show"),
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=WAIT_S,
            check=True,
        )
    assert result.stdout.endswith(b" True\n")


def test_the_status_and_the_one_line_are_those_of_the_rank_that_failed(folder: Path) -> None:
    result = finished(folder, 2, "fail")
    assert result.returncode == 2
    assert result.stderr == "bytetwin: batch_symbols 512 cannot be shared by 3 ranks\n" and result.stdout == ""


def test_a_killed_rank_ends_all_and_is_named(folder: Path) -> None:
    result = finished(folder, 3, "lose")
    assert result.returncode == 137
    assert result.stderr.startswith("bytetwin: rank 1 was killed by SIGKILL") and result.stderr.count("\n") == 1
    others = [int((folder / f"ready-{rank}").read_text()) for rank in (0, 2)]
    wait_until(lambda: not any(map(alive, others)), "the end of the other ranks")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_reaches_every_rank_and_each_may_save(folder: Path, number: signal.Signals, status: int) -> None:
    with started(folder, 2, "train") as process:
        ready = [folder / "ready-0", folder / "ready-1"]
        wait_until(lambda: all(path.exists() for path in ready), "two ranks", process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == status, errors
    assert (output, errors) == ("", "")
    assert (folder / "saved-0").exists() and (folder / "saved-1").exists()


@pytest.mark.parametrize(
    ("module", "note"), [("torch.distributed.elastic.multiprocessing", True), ("cuda_train.launch", False)]
)
def test_torch_s_note_about_macs_reaches_nobody(module: str, note: bool) -> None:
    program = f"import sys, torch\nsys.path.insert(0, {str(ROOT)!r})\nsys.platform = 'darwin'\nimport {module}\n"
    words = [sys.executable, "-c", program]
    result = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert ("Redirects" in result.stderr) is note


class BSDSocket(socket.socket):
    """A socket on a Mac: SO_REUSEADDR lets it have a port on all addresses that another has on one of them."""

    def bind(self, address: tuple[str, int]) -> None:
        if address[0] != "":
            super().bind(address)


def test_a_lost_contact_says_what_torch_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    words = "^rank 1 lost contact with another rank: NCCL error: out of memory$"
    with pytest.raises(RanksError, match=words), contact(1):
        raise RuntimeError("NCCL error: out of memory\nframe #0: somewhere")


def test_a_port_in_use_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(launcher.socket, "socket", BSDSocket)
        with pytest.raises(UserError, match="address already in use"):
            launcher.check_port(server.getsockname()[1])


def test_a_port_in_use_is_one_line_before_anything_starts(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert main(["train", "tiny", "--ranks", "2", "--port", str(port), "--runs-dir", str(folder)]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith(f"bytetwin: --port {port}: cannot be used (address already in use)")
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert [path.name for path in folder.iterdir()] == ["cuda_train"]
    assert finished(folder, 1, "show", port=port).returncode == 0


@pytest.mark.parametrize(
    ("gpus", "wanted", "ranks"), [(0, "1", 1), (0, "64", 64), (8, "gpus", 8), (8, "3", 3), (100, "gpus", 64)]
)
def test_ranks_by_number_or_by_gpus(monkeypatch: pytest.MonkeyPatch, gpus: int, wanted: str, ranks: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launcher.resolve_ranks(wanted) == ranks


@pytest.mark.parametrize(
    ("gpus", "wanted", "message"),
    [
        (0, "gpus", "no NVIDIA GPU found on this machine: --ranks N runs N processes on the CPU"),
        (0, "0", "--ranks 0: must be a number from 1 to 64, or gpus for every GPU"),
        (8, "65", "--ranks 65: must be a number from 1 to 64, or gpus for every GPU"),
        (0, "-1", "--ranks -1: must be a number from 1 to 64, or gpus for every GPU"),
        (0, "all", "--ranks all: must be a number from 1 to 64, or gpus for every GPU"),
        (2, "3", "--ranks 3: this machine has 2 NVIDIA GPUs"),
        (1, "8", "--ranks 8: this machine has 1 NVIDIA GPU"),
    ],
)
def test_ranks_that_cannot_be(monkeypatch: pytest.MonkeyPatch, gpus: int, wanted: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UserError) as raised:
        launcher.resolve_ranks(wanted)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "2", "--engine", "mlx"], "--ranks starts processes of the torch engine"),
        (["--ranks", "2", "--port", "70000"], "--port 70000: must be from 1 to 65535"),
        (["--ranks", "two"], "--ranks two: must be a number"),
        (["--ranks", "2", "--set", "model.num_layer=2"], "model.num_layer"),
    ],
)
def test_bad_words_are_one_line_from_the_launcher(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny", *words, "--runs-dir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def failure(rank: int, exitcode: int, timestamp: int = 0) -> ProcessFailure:
    made = ProcessFailure(local_rank=rank, pid=1, exitcode=exitcode, error_file=os.devnull)
    made.timestamp = timestamp
    return made


@pytest.mark.parametrize(
    ("failures", "rank"),
    [
        ({0: failure(0, 2), 1: failure(1, -15)}, 0),
        ({1: failure(1, 1), 0: failure(0, -15)}, 1),
        # The others lost contact with a killed rank and ended with a status of their own.
        ({0: failure(0, 1), 1: failure(1, -9), 2: failure(2, 1)}, 1),
        ({0: failure(0, 1), 1: failure(1, -11, 1)}, 1),
        # Ranks that the launcher had to kill 30 s after the failure explain nothing.
        ({0: failure(0, -9, 30), 1: failure(1, 1, 0)}, 1),
    ],
)
def test_the_failure_that_explains_the_others(failures: Mapping[int, ProcessFailure], rank: int) -> None:
    assert launcher.first_failure(failures)[0] == rank


def test_every_option_of_train_reaches_the_ranks() -> None:
    """A new option that is not passed on would be ignored silently with --ranks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    train.configure(parser)
    given = ["some.toml"]
    for action in parser._actions:
        if not action.option_strings or "--help" in action.option_strings:
            continue
        given.append(action.option_strings[0])
        if action.nargs != 0:
            given.append(next(iter(action.choices)) if action.choices else "7")
    args = parser.parse_args(given)
    assert parser.parse_args(train._words(args, args.run, args.resume)) == args
    assert all(value not in (None, False, []) for value in vars(args).values())


def test_a_rank_trains_instead_of_starting_ranks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(launcher, "launch", lambda *_: pytest.fail("started ranks"))
    words = ["train", "tiny", "--ranks", "2", "--engine", "torch", "--runs-dir", str(tmp_path)]
    for override in ("training.compile=false", "data.train=absent", "data.heldout=absent"):
        words += ["--set", override]
    assert main(words) == 2
    assert "absent" in capsys.readouterr().err


def test_the_document_is_that_of_rank_0_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def launched(given: Sequence[str], ranks: int, port: int | None) -> int:
        assert ranks == 2 and port is None and "--json" in given
        print(json.dumps({"rank": 0}))
        return 1

    monkeypatch.setattr(launcher, "launch", launched)
    assert main(["train", "--json", "tiny", "--ranks", "2", "--runs-dir", str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out) == {"rank": 0}
