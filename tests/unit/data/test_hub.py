"""Downloading from a hub and making documents of token shards: exact, resumed, and refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data import hub, hub_files
from data.datasets import load_manifest, open_split, verify_dataset
from data.folders import dataset_names, datasets_root
from data.hub_files import HubFiles
from data.opening import vocabulary_of
from data.shards import ShardWriter
from data.token_bytes import load_token_bytes
from data.tokenizer import Tokenizer
from shared.cli.main import main
from shared.errors import DataError
from tests import ROOT
from tests.datasets import documents_of, full_disk
from tests.hub_standin import REVISION, HubStandin
from tests.processes import wait_until
from tests.token_text import trained_model, write_shard

REPO = "willdepueoai/parameter-golf"
FOLDER = "datasets/datasets/fineweb10B_sp1024"
TOKENIZER = "datasets/tokenizers/fineweb_1024_bpe.model"
Refusal = Callable[..., str]


def shard_name(side: str, number: int) -> str:
    return f"{FOLDER}/fineweb_{side}_{number:06d}.bin"


FIRST = shard_name("train", 0)
SECOND = shard_name("train", 1)


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    words = ["the", "of", "and", "to", "sea", "stone", "1984", "caf\u00e9", "\u4f60\u597d", "\U0001f600", "fox-trot"]
    return [" ".join(draw.choices(words, k=draw.randrange(3, 40))) + ".\n" for _ in range(count)]


def train_model(size: int = 340, **options: Any) -> bytes:
    """A tiny SentencePiece model with the options of the public one, or others."""
    return trained_model(sentences(200, seed=7), size=size, **options)


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_model()


def encode_stream(model: bytes, texts: list[str]) -> np.ndarray:
    return np.concatenate(Tokenizer(model, Path("some.model")).encode(texts))


def normalised(model: bytes, texts: list[str]) -> list[bytes]:
    tokenizer = Tokenizer(model, Path("some.model"))
    return [tokenizer.normalised(text).encode() for text in texts]


def shard_bytes(folder: Path, tokens: np.ndarray) -> bytes:
    path = folder / "a.bin"
    path.unlink(missing_ok=True)
    write_shard(path, tokens)
    return path.read_bytes()


TRAIN_TEXTS = sentences(300, seed=1)
HELDOUT_TEXTS = sentences(40, seed=2)


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


def blobs(tmp_path: Path) -> list[str]:
    """Names of all files in the hub's cache, the unfinished ones with their ending."""
    return sorted(path.name for path in (tmp_path / "hf").glob("hub/*/blobs/*"))


def download(*words: object) -> int:
    return main(["data", "download", *(str(word) for word in words)])


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


NO_HUB = "does not answer like a hub; check HF_ENDPOINT"


@pytest.mark.parametrize(
    ("fault", "value", "message"),
    [
        ("api_status", 401, f"answers 401 for dataset {REPO}: access denied without HF_TOKEN; for gated or"),
        (
            "api_status",
            403,
            "access denied without HF_TOKEN; for gated or private data set HF_TOKEN to a token that has",
        ),
        ("api_status", 404, "not found without HF_TOKEN; if it is private, set HF_TOKEN"),
        ("api_status", 429, "too many requests; try again later"),
        ("api_status", 500, f"answers 500 for dataset {REPO}: try again later"),
        *(
            ("api_text", text, NO_HUB)
            for text in (b"<html>Log in</html>", b"{}", b"[1, 2]", b"\xff\xfe", b'{"id": "a/b"}')
        ),
        ("hidden", {FIRST}, f"{REPO} has no file {FIRST}"),
        ("wrong_hash", {FIRST: "../../../escape"}, "the hub gives '../../../escape', which is not a hash"),
    ],
)
def test_a_hub_that_refuses_or_is_none(
    standin: HubStandin, refusal: Refusal, fault: str, value: object, message: str
) -> None:
    setattr(standin.faults, fault, value)
    line = refusal("fineweb")
    assert message in line and (message != NO_HUB or standin.endpoint in line)


def test_a_file_that_is_refused(standin: HubStandin, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    standin.faults.file_status[FIRST] = [403]
    line = refusal("fineweb")
    assert f"answers 403 for {FIRST} of dataset {REPO}: access denied with the token in HF_TOKEN" in line
    assert "hf_secret" not in line


def test_a_busy_hub_is_asked_again(standin: HubStandin, refusal: Refusal) -> None:
    standin.faults.file_status[FIRST] = [503, 429]
    assert download("fineweb") == 0
    standin.faults.file_status[SECOND] = [503] * 9
    assert f"answers 503 for {SECOND}" in refusal("fineweb", "--shards", 2, "--name", "two")
    assert len(standin.faults.file_status[SECOND]) == 5


def test_a_hub_that_cannot_be_reached(standin: HubStandin, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert f"cannot reach the hub at {address} (" in refusal("fineweb")
    monkeypatch.setenv("HF_ENDPOINT", "no address")
    assert "check the network and HF_ENDPOINT" in refusal("fineweb")


def test_impossible_arguments(standin: HubStandin, refusal: Refusal) -> None:
    assert "no hub dataset 'pile'; there are: fineweb" in refusal("pile")
    assert "--tokenizer sp9: fineweb is there with sp1024, sp4096, sp8192" in refusal("fineweb", "--tokenizer", "sp9")
    assert "--shards 0: at least 1" in refusal("fineweb", "--shards", 0)
    assert "taken by the built-in corpus" in refusal("fineweb", "--name", "builtin")
    assert "dataset name '../x'" in refusal("fineweb", "--name", "../x")
    assert standin.requests == []
    assert f"--shards 4: {REPO} has 3 training shards in {FOLDER}" in refusal("fineweb", "--shards", 4)
    assert download("fineweb") == 0
    count = len(standin.requests)
    assert "--replace overwrites it" in refusal("fineweb")
    assert len(standin.requests) == count
    assert download("fineweb", "--replace") == 0


@pytest.mark.parametrize("missing", [FIRST, SECOND, shard_name("val", 0), TOKENIZER])
def test_a_repository_with_a_gap(standin: HubStandin, refusal: Refusal, missing: str) -> None:
    del standin.files[missing]
    assert f"{REPO} has no file {missing}" in refusal("fineweb", "--shards", 2)


def test_without_huggingface_hub(standin: HubStandin, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", None)
    assert "install it with the extra: bytetwin[data]" in refusal("fineweb")


def test_the_wrong_tokenizer_is_found(standin: HubStandin, refusal: Refusal) -> None:
    standin.files[TOKENIZER] = train_model(300)
    assert "the tokenizer has the ids 0 to 299: not the tokenizer of these shards" in refusal("fineweb")
    standin.files[TOKENIZER] = b"no model at all"
    assert "not a SentencePiece model" in refusal("fineweb")
    standin.files[TOKENIZER] = train_model(bos_id=-1)
    assert "no document start" in refusal("fineweb")


def test_a_tokenizer_file_is_read_or_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        load_token_bytes(tmp_path / "missing.model")
