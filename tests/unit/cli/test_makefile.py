"""`make h100` and its neighbours: which commands they run, and that the whole chain ends in a record."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.command_line import set_words
from tests.fake_study import read_json
from tests.processes import WAIT_S


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
    # What the make above was given, if tests were started by one, is not for this one.
    above = {"MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "ARGS", "WORKERS", "SPEC", "RANK"}
    kept = {name: value for name, value in os.environ.items() if name not in above}
    kept["OMP_NUM_THREADS"] = "1"
    if gpus is not None:
        kept["PATH"] = f"{gpus}{os.pathsep}{kept['PATH']}"
    return subprocess.run(
        ["make", *map(str, words)], cwd=ROOT, env=kept, capture_output=True, text=True, timeout=WAIT_S, check=False
    )


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def two_gpus(tmp_path: Path) -> Path:
    """A folder with an nvidia-smi that lists two GPUs."""
    gpus = [f"echo 'GPU {index}: NVIDIA H100 80GB HBM3 (UUID: GPU-{index})'" for index in (0, 1)]
    executable(tmp_path / "gpus" / "nvidia-smi", "\n".join(gpus))
    return tmp_path / "gpus"


@pytest.fixture
def no_gpus(tmp_path: Path) -> Path:
    """A folder with an nvidia-smi that finds no driver."""
    executable(tmp_path / "none" / "nvidia-smi", "echo NVIDIA-SMI has failed\nexit 9")
    return tmp_path / "none"


def commands(result: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The bytetwin commands of a dry run, without the path of the program."""
    assert result.returncode == 0, result.stderr
    lines = result.stdout.replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines if "/bytetwin " in line]
    starts = [next(index for index, word in enumerate(line) if word.endswith("/bytetwin")) for line in words]
    return [line[start + 1 :] for line, start in zip(words, starts, strict=True)]


def test_the_steps_of_h100_on_all_gpus(environment: Path, two_gpus: Path) -> None:
    result = make("-n", "h100", f"VENV={environment}", gpus=two_gpus)
    assert [shlex.join(words) for words in commands(result)] == [
        "prepare h100 --shards 80",
        "preflight h100 --engine torch --runs-dir runs --output runs/h100/preflight.json",
        "train h100 --engine torch --ranks gpus --runs-dir runs --run h100 --resume",
        "record runs/h100 --output records/h100 --replace",
    ]


def test_variables_reach_every_step_that_they_concern(environment: Path, two_gpus: Path) -> None:
    variables = ["GPUS=1", "SEED=7", "SHARDS=2", "PRICE=2.5", "FORCE=disk shards", "STRICT=1", "RECORD=--author A"]
    variables += ["ARGS=--set training.steps=9"]
    result = make("-n", "h100", f"VENV={environment}", *variables, gpus=two_gpus)
    prepare, preflight, train, record = (shlex.join(words) for words in commands(result))
    spec = "h100 --set training.seed=7 --set training.steps=9"
    assert prepare == f"prepare {spec} --shards 2"
    assert preflight.startswith(f"preflight {spec} ")
    asked = "--ranks 1 --price 2.5 --strict --force disk --force shards --output runs/h100-seed7/preflight.json"
    assert asked in preflight
    assert train.startswith(f"train {spec} ") and "--ranks 1 " in train and "--run h100-seed7" in train
    assert record == "record runs/h100-seed7 --output records/h100-seed7 --replace --author A"


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
    settings = (
        "training.compile=false",
        "training.steps=10",
        "evaluation.val_symbols=1024",
        "evaluation.batch_symbols=16384",
    )
    small = " ".join(set_words(*settings))
    places = [f"VENV={environment}", f"RUNS={tmp_path}/runs", f"RECORDS={tmp_path}/records"]
    words = ["h100", "SPEC=tiny", "RANKS=2", "RUN=chain", f"ARGS={small}", *places]
    result = make(*words)
    assert result.returncode == 0, result.stderr
    record = tmp_path / "records" / "chain"
    files = {"README.md", "submission.json", "spec.toml", "train.py", "score.py", "seed1337"}
    assert files == {path.name for path in record.iterdir()}
    assert (record / "seed1337" / "preflight.json").exists()
    assert read_json(record / "seed1337" / "environment.json")["ranks"] == 2
    metrics = (tmp_path / "runs" / "chain" / "metrics.jsonl").read_bytes()
    again = make(*words)
    assert again.returncode == 0 and "is already finished" in again.stderr
    assert (tmp_path / "runs" / "chain" / "metrics.jsonl").read_bytes() == metrics


# A Python of some version, as far as the Makefile asks: it runs what it is given only if it is new enough.
OLD, NEW = "exit 1", 'case "$*" in *machine*) echo {machine} ;; esac'


class Machine:
    """A PATH on which only these Pythons are found, on a system of this kind."""

    def __init__(self, folder: Path, pythons: dict[str, str], system: str = "Linux", **facts: str) -> None:
        folder.mkdir()
        self.path, self.calls = folder, folder.parent / "calls"
        for tool in ("sh", "make", "dirname", "test", "touch", "grep"):
            found = shutil.which(tool)
            assert found is not None, tool
            (folder / tool).symlink_to(found)
        executable(folder / "uname", f"echo {system}")
        for tool, answer in {"sw_vers": facts.get("macos", ""), "sysctl": facts.get("apple", "0")}.items():
            executable(folder / tool, f"echo {answer}")
        for name, version in pythons.items():
            script = version.format(machine=facts.get("machine", "arm64"))
            executable(folder / name, f'echo {name} "$2" >>{self.calls}\n{script}')

    def install(self, *words: str) -> tuple[int, str, str]:
        """(status of `make smoke` without an environment, its stderr but for make's own line, the Python that made
        the environment)."""
        kept = {"PATH": str(self.path), "HOME": str(self.path)}
        command = [str(self.path / "make"), "smoke", f"VENV={self.path.parent}/venv", "RANKS=1", *words]
        done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, timeout=WAIT_S, check=False)
        calls = self.calls.read_text().splitlines() if self.calls.exists() else []
        # `PYTHON -m venv FOLDER`: the fakes note their first two words.
        makers = [line.split()[0] for line in calls if line.split()[1:] == ["venv"]]
        told = [line for line in done.stderr.splitlines() if line.startswith("bytetwin ")]
        return done.returncode, "\n".join(told), makers[0] if makers else ""


@pytest.mark.parametrize(
    ("pythons", "expected"),
    [
        ({"python3": NEW}, "python3"),
        ({"python3": OLD, "python3.12": NEW, "python3.11": NEW}, "python3.12"),
        ({"python3": NEW, "python3.14": NEW, "python3.13": NEW}, "python3.14"),
        ({"python3": NEW, "python3.13": OLD}, "python3"),
    ],
)
def test_the_newest_python_that_can_be_used_makes_the_environment(
    pythons: dict[str, str], expected: str, tmp_path: Path
) -> None:
    _, told, maker = Machine(tmp_path / "bin", pythons).install()
    assert (told, maker) == ("", expected)


def test_a_python_that_is_named_is_taken_or_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "bin", {"python3.14": NEW, "python3.11": NEW, "python3": OLD})
    assert machine.install("PYTHON=python3.11")[1:] == ("", "python3.11")
    machine.calls.unlink()
    status, told, maker = machine.install("PYTHON=python3")
    assert (status, maker) == (2, "")
    assert told == "bytetwin needs Python 3.11 or newer with venv, and PYTHON=python3 is not"


@pytest.mark.parametrize(
    ("system", "told"),
    [
        ("Linux", "uv python install 3.13; or make PYTHON=/path/to/python3.13"),
        ("Darwin", "brew install python@3.13, or uv python install 3.13; or make PYTHON=/path/to/python3.13"),
    ],
)
def test_without_a_python_one_line_says_what_to_install(system: str, told: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "bin", {"python3": OLD}, system, macos="15.1")
    assert machine.install() == (2, f"bytetwin needs Python 3.11 or newer and found none: {told}", "")


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"macos": "26.2"}, ""),
        ({"macos": "14.0"}, ""),
        ({"macos": "13.7"}, "bytetwin needs macOS 14 or newer, this is 13.7: MLX and torch have no packages for it"),
        (
            {"macos": "15.1", "machine": "x86_64"},
            "bytetwin needs a Mac with Apple silicon: MLX and torch have no packages for Intel",
        ),
        (
            {"macos": "15.1", "machine": "x86_64", "apple": "1"},
            "bytetwin needs a Python for Apple silicon, and python3.12 is one for Intel under Rosetta: brew install "
            "python@3.13 (the brew in /opt/homebrew) or uv python install 3.13, then make PYTHON=/path/to/python3.13",
        ),
    ],
)
def test_a_mac_that_has_no_packages_is_one_line_before_pip(facts: dict[str, str], told: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "bin", {"python3.12": NEW, "python3": OLD}, "Darwin", **facts)
    status, found, maker = machine.install()
    assert (found, maker) == (told, "" if told else "python3.12")
    assert status == 2  # Where all is well, there is no pip in the environment that the fake Python made.


def test_every_target_is_in_the_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (phony,) = [line.split()[1:] for line in makefile.splitlines() if line.startswith(".PHONY:")]
    shown = make("help").stdout
    assert [target for target in phony if target != "help" and f"make {target} " not in shown] == []


def test_the_suite_and_its_fast_part_run_in_workers_of_one_thread(environment: Path) -> None:
    threads = "OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1"
    run = f"{threads} {environment}/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder"
    assert make("-n", "test", f"VENV={environment}").stdout.strip() == run
    fast = make("-n", "test-fast", f"VENV={environment}", "WORKERS=4", "ARGS=-x").stdout.strip()
    assert fast == f'{run.replace("-n 2", "-n 4")} -m "not slow" -x'


def test_a_clone_does_not_hide_the_package(tmp_path: Path) -> None:
    """Beside a clone Python would find its folder, `bytetwin`, before what setuptools' finder knows of."""
    printed = make("-n", "smoke", f"VENV={tmp_path / 'venv'}").stdout
    assert "--config-settings editable_mode=compat --editable '.[mlx,cuda,data,dev]'" in printed
