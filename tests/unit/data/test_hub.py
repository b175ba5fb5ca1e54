"""Downloading from a hub and making documents of token shards: exact, resumed, and nothing kept that is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data import hub, hub_files
from data.datasets import load_manifest, open_split, verify_dataset
from data.folders import dataset_names
from data.hub_files import HubFiles
from data.opening import vocabulary_of
from data.shards import ShardWriter
from shared.cli.main import main
from tests import ROOT
from tests.datasets import documents_of, full_disk
from tests.hub_repository import (
    FIRST,
    FOLDER,
    HELDOUT_TEXTS,
    REPO,
    SECOND,
    TOKENIZER,
    TRAIN_TEXTS,
    Refusal,
    download,
    encode_stream,
    normalised,
    shard_name,
)
from tests.hub_standin import REVISION, HubStandin
from tests.processes import wait_until


def blobs(tmp_path: Path) -> list[str]:
    """Names of all files in the hub's cache, the unfinished ones with their ending."""
    return sorted(path.name for path in (tmp_path / "hf").glob("hub/*/blobs/*"))


def test_the_whole_way(
    standin: HubStandin, model: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert download("fineweb", "--shards", 2, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    train, heldout = documents_of("fineweb", "train"), documents_of("fineweb", "heldout")
    assert heldout == normalised(model, HELDOUT_TEXTS)
    # Document 200 begins in the second shard and ends in the third.
    assert train == normalised(model, TRAIN_TEXTS[:200])
    assert document["unfinished_documents"] == 1
    assert document["splits"]["train"]["bytes"] == sum(map(len, train))
    assert document["downloaded_bytes"] == sum(
        len(standin.files[name]) for name in (TOKENIZER, FIRST, SECOND, shard_name("val", 0))
    )
    assert document["origin"] == {
        "repo_id": REPO,
        "revision": REVISION,
        "folder": FOLDER,
        "train_shards": 2,
        "train_shards_available": 3,
        "tokenizer_file": TOKENIZER,
        "tokenizer_sha256": hashlib.sha256(model).hexdigest(),
    }
    manifest = load_manifest("fineweb")
    assert manifest.origin is not None
    assert manifest.origin.model_dump() == document["origin"]
    assert REPO in manifest.source
    assert REVISION[:12] in manifest.source
    assert verify_dataset("fineweb") == []
    asked = {entry.path for entry in standin.requests}
    assert not any("agent" in path or "telemetry" in path for path in asked)
    assert all("torch" not in entry.user_agent for entry in standin.requests)
    # The token goes to the hub, and not on to where the files lie.
    tokens = {
        server: {entry.authorization for entry in standin.requests if entry.server == server}
        for server in ("hub", "content")
    }
    assert tokens == {"hub": {"Bearer hf_secret"}, "content": {None}}


def test_all_shards_hold_all_documents_and_come_once(
    standin: HubStandin, model: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download("fineweb", "--shards", 1, "--name", "one") == 0
    assert "dropped the last training document" in capsys.readouterr().err
    assert download("fineweb", "--shards", 3) == 0
    assert documents_of("fineweb", "train") == normalised(model, TRAIN_TEXTS)
    assert documents_of("one", "train") == documents_of("fineweb", "train")[:100]
    assert standin.fetched(FIRST) == [None]
    assert standin.fetched(shard_name("val", 0)) == [None]
    # Where huggingface_hub itself finds it.
    (pointer,) = (tmp_path / "hf" / "hub").glob(f"datasets--*/snapshots/{REVISION}/{FIRST}")
    assert pointer.read_bytes() == standin.files[FIRST]
    assert pointer.resolve().name == hashlib.sha256(standin.files[FIRST]).hexdigest()


def test_the_tokenizer_is_kept_and_makes_the_same_tokens(standin: HubStandin, model: bytes) -> None:
    assert download("fineweb", "--shards", 3) == 0
    words = ["encode", "tokens", "fineweb", "--tokenizer", "fineweb-sp1024"]
    assert main(["tokenizer", *words]) == 0
    manifest = load_manifest("tokens")
    stream = open_split("tokens", "train", vocabulary_of(manifest))
    np.testing.assert_array_equal(stream.read(0, stream.num_symbols), encode_stream(model, TRAIN_TEXTS))
    assert manifest.splits["train"].total_bytes == load_manifest("fineweb").splits["train"].total_bytes


def test_a_small_file_is_checked_by_its_git_object_id(standin: HubStandin, refusal: Refusal) -> None:
    standin.small = frozenset({TOKENIZER})
    assert download("fineweb") == 0
    standin.files[TOKENIZER] += b"more"
    standin.faults.wrong_bytes[TOKENIZER] = standin.files[TOKENIZER][:-1] + b"!"
    assert f"{TOKENIZER}: git object id" in refusal("fineweb", "--name", "two")


def test_dropped_connections_go_on_where_they_stopped(standin: HubStandin, model: bytes) -> None:
    standin.faults.end_after_bytes[FIRST] = [1500, 700]
    standin.faults.drop_after_bytes[SECOND] = [1000]
    assert download("fineweb", "--shards", 3) == 0
    assert standin.fetched(FIRST) == [None, "bytes=1500-", "bytes=2200-"]
    assert len(standin.fetched(SECOND)) == 2
    assert documents_of("fineweb", "train") == normalised(model, TRAIN_TEXTS)


def test_a_server_without_ranges_sends_all_again(standin: HubStandin, model: bytes) -> None:
    standin.faults.end_after_bytes[FIRST] = [1500]
    standin.faults.ignore_ranges = True
    assert download("fineweb", "--shards", 3) == 0
    assert standin.fetched(FIRST) == [None, "bytes=1500-"]
    assert documents_of("fineweb", "train") == normalised(model, TRAIN_TEXTS)


def test_the_next_command_goes_on_where_one_gave_up(
    standin: HubStandin, tmp_path: Path, refusal: Refusal, capsys: pytest.CaptureFixture[str]
) -> None:
    standin.faults.end_after_bytes[FIRST] = [1500, 0, 0, 0, 0]
    assert "cannot reach the hub at http://127.0.0.1" in refusal("fineweb")
    assert any(name.endswith(".incomplete") for name in blobs(tmp_path))
    del standin.faults.end_after_bytes[FIRST]
    assert download("fineweb", "--json") == 0
    assert standin.fetched(FIRST)[-1] == "bytes=1500-"
    assert json.loads(capsys.readouterr().out)["downloaded_bytes"] >= len(standin.files[FIRST]) - 1500
    assert not any(name.endswith(".incomplete") for name in blobs(tmp_path))


@pytest.mark.slow
def test_a_killed_download_continues(standin: HubStandin, model: bytes, tmp_path: Path) -> None:
    standin.faults.hold_after_bytes[FIRST] = [2000]
    command = [sys.executable, "-m", "shared.cli.main", "data", "download", "fineweb"]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ.copy()) as process:
        pattern = f"hub/*/blobs/{hashlib.sha256(standin.files[FIRST]).hexdigest()}.incomplete"
        fetched = lambda: sum(path.stat().st_size for path in (tmp_path / "hf").glob(pattern))  # noqa: E731
        wait_until(lambda: fetched() >= 2000, "2000 bytes", process)
        process.send_signal(signal.SIGKILL)
    standin.release.set()
    assert dataset_names() == []
    assert download("fineweb", "--shards", 3) == 0
    assert documents_of("fineweb", "train") == normalised(model, TRAIN_TEXTS)
    assert standin.fetched(FIRST) == [None, "bytes=2000-"]


def test_ctrl_c_keeps_what_is_there(
    standin: HubStandin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub_files, "wait", press)
    assert download("fineweb") == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert dataset_names() == []


def test_a_wrong_hash_is_refused_and_the_file_not_kept(standin: HubStandin, tmp_path: Path, refusal: Refusal) -> None:
    content = standin.files[FIRST]
    standin.faults.wrong_bytes[FIRST] = content[:-1] + bytes([content[-1] ^ 1])
    line = refusal("fineweb")
    assert f"{FIRST}: SHA-256 " in line
    assert hashlib.sha256(content).hexdigest() in line
    assert "nothing imported" in line
    assert not any(name.startswith(hashlib.sha256(content).hexdigest()) for name in blobs(tmp_path))
    standin.faults.wrong_bytes.clear()
    assert download("fineweb") == 0


def test_a_damaged_file_in_the_cache_is_fetched_again(standin: HubStandin, tmp_path: Path) -> None:
    assert download("fineweb") == 0
    (blob,) = (tmp_path / "hf").glob(f"hub/*/blobs/{hashlib.sha256(standin.files[FIRST]).hexdigest()}")
    blob.write_bytes(b"x" * len(standin.files[FIRST]))
    assert download("fineweb", "--replace") == 0
    assert standin.fetched(FIRST) == [None, None]
    # So is one whose beginning was damaged, after its end had come.
    blob.rename(blob.with_name(blob.name + ".incomplete"))
    blob.with_name(blob.name + ".incomplete").write_bytes(b"x" * 1000)
    assert download("fineweb", "--replace") == 0
    assert standin.fetched(FIRST) == [None, None, "bytes=1000-", None]


@pytest.mark.parametrize("extra", [b"more than it said", b"m" * 1_000_000])
def test_a_file_longer_than_described_is_refused(
    standin: HubStandin, tmp_path: Path, refusal: Refusal, extra: bytes
) -> None:
    standin.faults.wrong_bytes[FIRST] = standin.files[FIRST] + extra
    assert f"sends more than the {len(standin.files[FIRST])} bytes it says" in refusal("fineweb")
    largest = max(path.stat().st_size for path in (tmp_path / "hf").glob("hub/*/blobs/*"))
    assert largest <= max(map(len, standin.files.values()))


def test_too_little_space_is_found_before_downloading(
    standin: HubStandin, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "free_bytes", lambda _folder: 5000)
    line = refusal("fineweb")
    assert "not enough disk space in" in line
    assert "GB needed" in line
    assert blobs(tmp_path) == []
    assert [entry for entry in standin.requests if entry.server == "content"] == []


def test_a_disk_that_fills_up_while_downloading(
    standin: HubStandin, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = HubFiles._stream

    def stream_to_full_disk(self: HubFiles, file: Any, output: Any) -> None:
        def write_a_part(data: bytes) -> None:
            output.write(data[:1234])
            full_disk()

        stream(self, file, SimpleNamespace(tell=output.tell, write=write_a_part) if file.path == FIRST else output)

    with monkeypatch.context() as patch:
        patch.setattr(HubFiles, "_stream", stream_to_full_disk)
        line = refusal("fineweb")
    assert f"cannot write {FIRST} to " in line
    assert "no space left on device" in line
    assert download("fineweb") == 0
    assert standin.fetched(FIRST) == [None, "bytes=1234-"]


def test_a_disk_that_fills_up_while_converting(
    standin: HubStandin, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", full_disk)
        assert "no space left on device; nothing was kept" in refusal("fineweb")
    assert download("fineweb") == 0
    assert standin.fetched(FIRST) == [None]
