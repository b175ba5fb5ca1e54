"""A run that several commands look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_training import train_toy


@pytest.fixture(scope="session")
def trained_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset `toy` in datasets/ and the finished run `first` on it; tests leave both as they are."""
    root = tmp_path_factory.mktemp("toy")
    train_toy(root)
    return root


@pytest.fixture
def root(trained_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, with its datasets in use."""
    monkeypatch.setenv("BYTETWIN_DATASETS", str(trained_root / "datasets"))
    return trained_root
