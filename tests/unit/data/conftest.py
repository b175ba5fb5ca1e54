"""A hub with a small data set, and the refusals of downloads from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data import hub_files
from data.folders import datasets_root
from tests.hub_repository import (
    FOLDER,
    HELDOUT_TEXTS,
    REPO,
    TOKENIZER,
    TRAIN_TEXTS,
    Refusal,
    download,
    encode_stream,
    shard_bytes,
    shard_name,
    train_model,
)
from tests.hub_standin import HubStandin


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_model()


@pytest.fixture(scope="module")
def files(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository: a validation shard, and three of training, with documents 100 and 200 on two sides of a cut."""
    folder = tmp_path_factory.mktemp("shards")
    stream = encode_stream(model, TRAIN_TEXTS)
    content = {TOKENIZER: model, shard_name("val", 0): shard_bytes(folder, encode_stream(model, HELDOUT_TEXTS))}
    starts = np.flatnonzero(stream == 1)
    for number, part in enumerate(np.split(stream, [starts[100] + 2, starts[200] + 3])):
        content[shard_name("train", number)] = shard_bytes(folder, part)
    content[f"{FOLDER}/fineweb_train_notes.txt"] = b"no shard"
    return content


@pytest.fixture
def standin(
    files: dict[str, bytes], datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubStandin]:
    from huggingface_hub import close_session

    with HubStandin(REPO, files) as server:
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(hub_files, "RETRY_WAITS_S", (0.0, 0.01, 0.02))
        yield server
        close_session()


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Gives the one line of a refused download, which left no dataset behind."""

    def refused(*words: object) -> str:
        before = sorted(datasets_root().glob("*"))
        capsys.readouterr()
        assert download(*words) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert sorted(datasets_root().glob("*")) == before
        return lines[0]

    return refused
