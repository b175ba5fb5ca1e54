"""Downloads that a hub refuses, and what is no hub or not the expected data set: one line each."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from data.token_bytes import load_token_bytes
from shared.errors import DataError
from tests.hub_repository import FIRST, FOLDER, REPO, SECOND, TOKENIZER, Refusal, download, shard_name, train_model
from tests.hub_standin import HubStandin

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
