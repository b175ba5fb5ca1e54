"""What a command imports before it works: of two frameworks none or one, and nothing heavy for what prints a text.

Modules are counted here and not seconds, which depend on the machine; tests/bench/startup.py measures those.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data.importing import import_dataset
from shared.artifact import write_artifact
from shared.cli.main import COMMANDS, main
from shared.model import random_weights
from shared.spec import load_spec
from tests import ROOT
from tests.command_line import CommandLine, set_words
from tests.processes import WAIT_S

FRAMEWORKS = {"torch", "mlx.core"}
HEAVY = FRAMEWORKS | {"numpy", "pydantic", "rich", "safetensors", "data"}
# torch's compiler takes longer to import than the rest of torch.
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}

LOADED = """
import sys
from shared.cli.main import main
statuses = []
for line in sys.argv[1].splitlines():
    try:
        statuses.append(main(line.split("|")))
    except SystemExit as error:
        statuses.append(error.code)
assert not any(statuses), statuses
print("LOADED", *sys.modules)
"""

TEXT = ["".join(f"document {index}, line {line}\n" for line in range(9)) for index in range(60)]
SETTINGS = ["data.train=toy", "data.heldout=toy", "training.steps=2", "training.compile=false"]
SETTINGS += ["evaluation.val_symbols=256"]


def loaded(*lines: str) -> set[str]:
    """The modules that a new process has imported after some command lines, words separated by bars."""
    command = [sys.executable, "-c", LOADED, "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED ")[2].split())


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny.btw with random weights, in a folder of its own with a small dataset."""
    monkeypatch.setenv("BYTETWIN_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXT))
    import_dataset("toy", [Path("text.jsonl")], heldout_frac=0.3)
    spec = load_spec("tiny", SETTINGS)
    path = tmp_path / "tiny.btw"
    write_artifact(path, spec, random_weights(spec, 1))
    return path


def train(engine: str) -> str:
    return "|".join(["train", "tiny", "--engine", engine, "--run", engine, *set_words(*SETTINGS)])


@pytest.mark.parametrize("line", ["--help", "--version"])
def test_what_prints_a_text_imports_nothing_heavy(line: str) -> None:
    modules = loaded(line)
    assert not modules & HEAVY
    assert {name for name in modules if name.startswith("shared.cli.")} == {"shared.cli.main"}


def test_spec_imports_no_engine_no_data_and_no_console() -> None:
    modules = loaded("spec|smoke")
    assert not modules & (HEAVY - {"numpy", "pydantic"})
    commands = {name for name in modules if name.startswith("shared.cli.")}
    assert commands == {"shared.cli.main", "shared.cli.command", "shared.cli.spec"}


def test_help_of_every_command_needs_no_framework() -> None:
    modules = loaded(*(f"{name}|--help" for name in COMMANDS))
    assert {f"shared.cli.{name}" for name in COMMANDS} <= modules
    assert not modules & FRAMEWORKS


def test_every_command_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n    {name}" in text
    modules = {path.stem for path in (ROOT / "shared" / "cli").glob("*.py") if "\ndef configure(" in path.read_text()}
    assert set(COMMANDS) == modules


def test_the_oracle_scores_and_samples_without_a_framework(artifact: Path) -> None:
    modules = loaded(
        f"score|{artifact}|--engine|numpy|--max-symbols|200", f"generate|{artifact}|--engine|numpy|--bytes|4"
    )
    assert not modules & FRAMEWORKS


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["mlx", "torch"])
def test_an_engine_trains_and_scores_without_the_other(artifact: Path, engine: str) -> None:
    modules = loaded(train(engine), f"score|{artifact}|--engine|{engine}|--max-symbols|200")
    assert modules & FRAMEWORKS == {{"mlx": "mlx.core", "torch": "torch"}[engine]}
    assert not modules & COMPILER


def test_an_engine_is_chosen_without_importing_the_other(artifact: Path) -> None:
    assert loaded(f"generate|{artifact}|--bytes|4") & FRAMEWORKS == {"mlx.core"}


def test_a_missing_engine_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, cli: CommandLine) -> None:
    found = importlib.util.find_spec

    def without_mlx(name: str, package: str | None = None) -> object:
        if name == "mlx.core":
            raise ModuleNotFoundError("No module named 'mlx'", name="mlx")
        return found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_mlx)
    assert cli.refusal("train", "tiny", "--engine", "mlx") == (
        "bytetwin: engine 'mlx' needs the package mlx, which is not installed (extra `mlx`); engines installed: torch\n"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    told = cli.refusal("train", "tiny", "--ranks", "2")
    assert "needs the package torch, which is not installed (extra `cuda`); engines installed: none" in told
    assert "none is installed; install the extra `mlx` or `cuda`" in cli.refusal("train", "tiny")
