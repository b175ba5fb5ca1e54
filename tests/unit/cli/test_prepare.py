"""`bytetwin prepare`: only what is missing is downloaded, and what is nowhere is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import datasets, folders, hub
from data.importing import import_dataset
from shared.cli import prepare
from shared.cli.command import CommandResult
from tests.command_line import CommandLine, set_words
from tests.token_text import small_tokenizer


def words(train: str, heldout: str | None = None) -> list[str]:
    return ["prepare", "tiny", *set_words(f"data.train={train}", f"data.heldout={heldout or train}")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str, int]]:
    """(source, tokenizer, shards) of the downloads that were asked for; each leaves a dataset behind."""
    monkeypatch.setenv(folders.ROOT_VARIABLE, str(tmp_path))
    downloads: list[tuple[str, str, int]] = []
    text = tmp_path / "text.txt"
    text.write_text("the same words, again and again\n")

    def download(source: str, tokenizer: str, shards: int) -> CommandResult:
        downloads.append((source, tokenizer, shards))
        import_dataset(source, [text], split="train")
        return CommandResult()

    monkeypatch.setattr(prepare, "download", download)
    return downloads


def test_a_missing_dataset_of_the_hub_is_downloaded_once(asked: list[tuple[str, str, int]], cli: CommandLine) -> None:
    assert cli.document(*words("fineweb"), "--shards", "3") == {"datasets": {"fineweb": "downloaded"}}
    assert asked == [("fineweb", hub.DEFAULT_TOKENIZER, 3)] and "fineweb" in hub.SOURCES
    assert cli.document(*words("fineweb"), "--shards", "3") == {"datasets": {"fineweb": "on disk"}}
    assert len(asked) == 1


def test_tokens_of_the_hub_are_encoded_from_its_text(
    asked: list[tuple[str, str, int]], tmp_path: Path, cli: CommandLine
) -> None:
    """The download here leaves no tokenizer behind, so one is put in its place."""
    (tmp_path / folders.TOKENIZERS).mkdir()
    (tmp_path / folders.TOKENIZERS / "fineweb-sp4096.model").write_bytes(small_tokenizer().content)
    for state in ("encoded", "on disk"):
        assert cli.document(*words("fineweb-sp4096")) == {"datasets": {"fineweb-sp4096": state}}
    assert asked == [("fineweb", "sp4096", 1)]
    assert datasets.load_manifest("fineweb-sp4096").vocabulary == small_tokenizer().sha256


def test_a_spec_of_other_data_downloads_nothing(
    asked: list[tuple[str, str, int]], tmp_path: Path, cli: CommandLine
) -> None:
    import_dataset("mine", [tmp_path / "text.txt"], split="train")
    assert cli.document(*words("mine")) == {"datasets": {"mine": "on disk"}} and asked == []
    done = cli(*words("mine", "nowhere"))
    assert done.status == 2 and "nowhere" in done.err.splitlines()[-1] and asked == []


def test_a_failed_download_is_the_status(
    asked: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.setattr(prepare, "download", lambda *_: CommandResult({"interrupted": True}, 130))
    assert cli(*words("fineweb")).status == 130
