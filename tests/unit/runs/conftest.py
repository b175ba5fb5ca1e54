"""A finished run with all its checkpoints, for tests of what may be done to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data.importing import import_dataset
from shared.spec import Spec
from shared.training.run import train_run
from tests.fake_training import quiet_observer, tiny_spec

SPEC = (
    "training.steps=6",
    "training.val_every_steps=2",
    "training.checkpoint_every_steps=2",
    "training.keep_checkpoints=3",
    "training.ema_decay=0.5",
    "evaluation.val_symbols=512",
    "evaluation.batch_symbols=4096",
    "data.train=toy",
    "data.heldout=toy",
)


@pytest.fixture(scope="module")
def spec() -> Spec:
    """The spec of the run."""
    return tiny_spec(*SPEC)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, spec: Spec) -> Path:
    """Datasets `toy` and `other`, made without the figures of compressors, and the run `first` on `toy`."""
    root = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYTETWIN_DATASETS", str(root / "datasets"))
        for name, factor in (("toy", 7919), ("other", 104_729)):
            documents = [f"document {index}: {index * factor % 9973} words, or so they say.\n" for index in range(300)]
            path = root / f"{name}.jsonl"
            path.write_text("".join(json.dumps({"text": text * 2}) + "\n" for text in documents))
            import_dataset(name, [path], heldout_frac=0.2)
        result = train_run(spec, "mlx", quiet_observer(), runs_dir=root, run_name="first")
        assert result.exit_status == 0
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run."""
    monkeypatch.setenv("BYTETWIN_DATASETS", str(root / "datasets"))
    return Path(shutil.copytree(root / "first", tmp_path / "run"))
