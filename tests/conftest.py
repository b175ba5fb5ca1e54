"""What holds for every test, before either framework is imported."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.command_line import CommandLine
from tests.processes import start_with_default_signals
from tests.triton_interpreter import interpreter as interpreter

# Tests compare with exact products, whatever the shell asks of MLX.
os.environ["MLX_ENABLE_TF32"] = "0"

# No example has a time limit, because a loaded machine may take any time, and the examples are the same in every run:
# what fails is the change at hand. `--hypothesis-profile=random` looks for others.
settings.register_profile("random", deadline=None)
settings.register_profile("repeatable", settings.get_profile("random"), derandomize=True)
settings.load_profile("repeatable")

start_with_default_signals()


def pytest_collection_finish() -> None:
    """What is imported stays, so the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """`cli("score", run, "--json").document["bpb"]`."""
    return CommandLine(capsys)


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for this test's datasets."""
    folder = tmp_path / "datasets"
    monkeypatch.setenv("BYTETWIN_DATASETS", str(folder))
    return folder
