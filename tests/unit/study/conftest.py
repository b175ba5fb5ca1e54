"""What tests of several runs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.training.run import train_run
from tests.fake_training import SHORT, quiet_observer, tiny_spec


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run `first` with seed 1337. Tests copy it."""
    runs = tmp_path_factory.mktemp("runs")
    result = train_run(tiny_spec(*SHORT), "torch", quiet_observer(), runs_dir=runs, run_name="first")
    assert result.exit_status == 0
    return runs / "first"
