"""`bytetwin data`: what each action returns, prints and refuses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from data import builtin
from data.builtin import BuiltinCorpus
from data.folders import datasets_root
from shared.cli import data as command
from shared.cli.command import CommandResult
from shared.errors import DataError


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTETWIN_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {index}"}) + "\n" for index in range(50)) + '{"text": ""}\n')
    return path


def run(*words: object) -> CommandResult:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    command.configure(parser)
    result = command.run(parser.parse_args([str(word) for word in words]))
    json.dumps(result.document)
    return result


def test_import_list_verify(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = run("import", "toy", corpus, "--heldout-frac", "0.3").document
    splits = document["splits"]
    assert splits["train"]["documents"] + splits["heldout"]["documents"] == 50
    assert splits["heldout"]["documents"] > 0
    assert document["left_out"] == {"empty documents": 1}
    assert "left out: empty documents: 1" in capsys.readouterr().err
    listed: dict[str, Any] = {entry["name"]: entry for entry in run("list").document["datasets"]}
    assert listed["toy"]["sha256"] == document["sha256"]
    assert "not built yet" in listed["builtin"]["source"]
    assert run("verify") == CommandResult({"passed": True, "problems": {"toy": []}}, status=0)
    captured = capsys.readouterr()
    assert captured.err == "" and splits["train"]["sha256"][:16] in captured.out


@pytest.mark.parametrize(
    ("share", "told"),
    [("0.000001", "is held out"), ("0", ""), ("0.5", ""), ("1", ""), ("0.999999", "is left to train on")],
)
def test_a_side_without_documents_is_told_unless_it_was_meant(
    corpus: Path, share: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("import", "toy", corpus, "--heldout-frac", share)
    errors = capsys.readouterr().err
    assert f"warning: no document {told}" in errors if told else "warning" not in errors


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_import_to_one_side(corpus: Path, split: str) -> None:
    splits = run("import", "toy", corpus, "--split", split).document["splits"]
    assert {side: entry["documents"] for side, entry in splits.items()} == {split: 50}


def test_replace(corpus: Path) -> None:
    run("import", "toy", corpus)
    with pytest.raises(DataError, match="--replace"):
        run("import", "toy", corpus)
    run("import", "toy", corpus, "--replace", "--split", "train")
    assert list(run("list").document["datasets"][1]["splits"]) == ["train"]


def test_damage_is_listed_and_fails_verify(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("import", "good", corpus, "--split", "train")
    run("import", "bad", corpus, "--split", "train")
    run("import", "worse", corpus, "--split", "train")
    shard = datasets_root() / "bad" / "train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    (datasets_root() / "worse" / "manifest.json").write_text("[]")
    result = run("verify")
    assert result.status == 1
    assert not result.document["passed"]
    assert {name: len(problems) for name, problems in result.document["problems"].items()} == {
        "good": 0,
        "bad": 1,
        "worse": 1,
    }
    assert "train_000000.bin" in capsys.readouterr().out
    assert run("verify", "good").status == 0
    listed = {entry["name"]: entry for entry in run("list").document["datasets"]}
    assert "damaged manifest" in listed["worse"]["error"]
    with pytest.raises(DataError, match="no dataset 'ghost'"):
        run("verify", "ghost")


def test_build_makes_the_builtin_corpus_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real corpus takes seconds and has tests of its own; this is about the command.
    texts = BuiltinCorpus(train=["some text", "more text"], heldout=["other text"], description="a small library")
    monkeypatch.setattr(builtin, "build_corpus", lambda progress: progress(1, 1) or texts)
    first = run("build").document
    second = run("build").document
    assert first["built"]
    assert run("build", "--replace").document["built"]
    assert not second["built"]
    assert first["sha256"] == second["sha256"]
    assert first["splits"]["train"]["sha256"][:16] in capsys.readouterr().err


def test_the_reserved_name_and_impossible_arguments(corpus: Path) -> None:
    with pytest.raises(DataError, match="taken by the built-in corpus"):
        run("import", "builtin", corpus)
    with pytest.raises(DataError, match=r"no dataset in .* to verify"):
        run("verify")
    with pytest.raises(SystemExit):
        run("import", "toy", corpus, "--split", "train", "--heldout-frac", "0.5")


def test_json_is_accepted_on_either_side_of_the_action() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    command.configure(parser)
    assert parser.parse_args(["--json", "list"]).json
    assert parser.parse_args(["list", "--json"]).json
    assert not parser.parse_args(["list"]).json
