"""`make h100` and its neighbours: which commands they run, and that the whole chain ends in a record."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 300
LISTING = (
    '#!/bin/sh\nprintf "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)\\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\\n"\n'
)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment that is installed already: the running one."""
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / "bin").symlink_to(Path(sys.executable).parent)
    (folder / "installed").touch()
    return folder


def make(*words: str | Path, gpus: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run make with `gpus` in front of PATH, without variables of a make around the tests."""
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "SPEC", "RANK")}
    kept["OMP_NUM_THREADS"] = "1"
    if gpus is not None:
        kept["PATH"] = f"{gpus}{os.pathsep}{kept['PATH']}"
    return subprocess.run(
        ["make", *map(str, words)], cwd=ROOT, env=kept, capture_output=True, text=True, timeout=WAIT_S, check=False
    )


@pytest.fixture
def two_gpus(tmp_path: Path) -> Path:
    """A folder with an nvidia-smi that lists two GPUs."""
    folder = tmp_path / "gpus"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(LISTING)
    (folder / "nvidia-smi").chmod(0o755)
    return folder


@pytest.fixture
def no_gpus(tmp_path: Path) -> Path:
    """A folder with an nvidia-smi that finds no driver."""
    folder = tmp_path / "none"
    folder.mkdir()
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    (folder / "nvidia-smi").chmod(0o755)
    return folder


def commands(result: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The bytetwin commands of a dry run, without the path of the program."""
    assert result.returncode == 0, result.stderr
    lines = result.stdout.replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines if "/bytetwin " in line]
    starts = [next(index for index, word in enumerate(line) if word.endswith("/bytetwin")) for line in words]
    return [line[start + 1 :] for line, start in zip(words, starts, strict=True)]


def test_the_steps_of_h100_on_all_gpus(environment: Path, two_gpus: Path) -> None:
    result = make("-n", "h100", f"VENV={environment}", gpus=two_gpus)
    record = ["record", "runs/h100", "--out", "records/h100", "--replace"]
    assert commands(result) == [
        ["prepare", "h100", "--shards", "80"],
        ["preflight", "h100", "--engine", "torch", "--runs-dir", "runs", "--record", "runs/h100/preflight.json"],
        ["train", "h100", *shlex.split("--engine torch --ranks gpus --runs-dir runs --run h100 --resume")],
        record,
    ]


def test_variables_reach_every_step_that_they_concern(environment: Path, two_gpus: Path) -> None:
    variables = [
        "GPUS=1",
        "SEED=7",
        "SHARDS=2",
        "PRICE=2.5",
        "FORCE=disk shards",
        "STRICT=1",
        "ARGS=--set training.steps=9",
    ]
    result = make("-n", "h100", f"VENV={environment}", *variables, "RECORD=--author A", gpus=two_gpus)
    prepare, preflight, train, record = (shlex.join(words) for words in commands(result))
    spec = "h100 --set training.seed=7 --set training.steps=9"
    assert prepare == f"prepare {spec} --shards 2"
    assert preflight.startswith(f"preflight {spec} ")
    assert (
        "--ranks 1 --price 2.5 --strict --force disk --force shards --record runs/h100-seed7/preflight.json"
        in preflight
    )
    assert train.startswith(f"train {spec} ") and "--ranks 1 " in train and "--run h100-seed7" in train
    assert record == "record runs/h100-seed7 --out records/h100-seed7 --replace --author A"


def test_without_a_gpu_nothing_is_installed_or_downloaded(tmp_path: Path, no_gpus: Path) -> None:
    result = make("h100", f"VENV={tmp_path}/venv", f"RUNS={tmp_path}/runs", gpus=no_gpus)
    assert result.returncode == 2 and result.stdout == ""
    assert "no NVIDIA GPU found on this machine; make h100 RANKS=2 trains" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["none"]


def test_a_node_gets_torch_alone_and_other_targets_everything(tmp_path: Path, two_gpus: Path) -> None:
    node = make("-n", "h100", f"VENV={tmp_path}/venv", gpus=two_gpus).stdout
    assert "'.[cuda,data]'" in node and "download.pytorch.org" not in node
    everything = make("-n", "smoke", f"VENV={tmp_path}/venv", gpus=two_gpus).stdout
    assert "'.[mlx,cuda,data,dev]'" in everything


def test_preflight_alone(environment: Path) -> None:
    (words,) = commands(make("-n", "preflight", f"VENV={environment}", "SPEC=tiny", "RANKS=2"))
    assert words == ["preflight", "tiny", "--engine", "torch", "--runs-dir", "runs", "--ranks", "2"]
    ((command, spec, *_),) = commands(make("-n", "parity", f"VENV={environment}"))
    assert (command, spec) == ("parity", "smoke")


@pytest.mark.slow
def test_the_whole_chain_with_two_ranks_on_the_cpu(environment: Path, tmp_path: Path) -> None:
    """From the spec to the record folder, then once more: a finished run is left alone."""
    small = "--set training.compile=false --set training.steps=10 --set evaluation.batch_symbols=16384"
    places = [f"VENV={environment}", f"RUNS={tmp_path}/runs", f"RECORDS={tmp_path}/records"]
    words = ["h100", "SPEC=tiny", "RANKS=2", "RUN=chain", f"ARGS={small}", *places]
    result = make(*words)
    assert result.returncode == 0, result.stderr
    record = tmp_path / "records" / "chain"
    assert {"README.md", "submission.json", "spec.toml", "seed1337"} == {path.name for path in record.iterdir()}
    assert (record / "seed1337" / "preflight.json").exists()
    environment_of_run = json.loads((record / "seed1337" / "environment.json").read_text())
    assert environment_of_run["ranks"] == 2
    metrics = (tmp_path / "runs" / "chain" / "metrics.jsonl").read_bytes()
    again = make(*words)
    assert again.returncode == 0 and "is finished, nothing is left to do" in again.stderr
    assert (tmp_path / "runs" / "chain" / "metrics.jsonl").read_bytes() == metrics
