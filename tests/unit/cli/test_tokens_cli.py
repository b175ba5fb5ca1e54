"""Tokens through the command line: a tokenizer is trained, a dataset encoded, a model trained, scored and asked."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.datasets import load_manifest, open_split, verify_dataset, vocabulary_of
from data.folders import datasets_root
from data.importing import import_dataset
from data.manifest import SplitEntry, dataset_hash
from data.shards import HEADER_BYTES
from data.tokenizer import find_tokenizer
from shared.engine.package import available_engines
from shared.spec import load_spec, spec_to_toml, with_overrides
from tests.command_line import CommandLine
from tests.datasets import documents_of
from tests.token_text import documents, token_spec

SPEC = spec_to_toml(
    with_overrides(
        token_spec({"vocab_size": 330}, start="document_start"),
        ["data.train=toy-tokens", "data.heldout=toy-tokens", "training.steps=4", "evaluation.val_symbols=200"],
    )
)


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine) -> None:
    """A byte dataset `toy`, a tokenizer `small`, the tokens `toy-tokens`, and a spec that reads them."""
    monkeypatch.setenv("BYTETWIN_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    Path("spec.toml").write_text(SPEC)
    text = Path("text.jsonl")
    lines = [json.dumps({"text": f"{text}\nNo. {index}"}) + "\n" for index, text in enumerate(documents(60))]
    text.write_text("".join(lines))
    import_dataset("toy", [text], heldout_frac=0.3)
    assert cli.document("tokenizer", "train", "small", "toy", "--vocab-size", "330")["vocab_size"] == 330
    cli.document("tokenizer", "encode", "toy-tokens", "toy", "--tokenizer", "small")


def test_a_dataset_of_tokens_says_what_it_holds(cli: CommandLine) -> None:
    tokenizer = find_tokenizer("small")
    manifest, source = load_manifest("toy-tokens"), load_manifest("toy")
    assert manifest.tokenizer is not None and manifest.vocabulary == tokenizer.sha256
    assert {split: entry.num_documents for split, entry in manifest.splits.items()} == {
        split: entry.num_documents for split, entry in source.splits.items()
    }
    result = cli.document("tokenizer", "encode", "again", "toy", "--tokenizer", "small")
    shards = [shard for entry in load_manifest("again").splits.values() for shard in entry.shards]
    assert sum((shard.bytes - HEADER_BYTES) // 2 for shard in shards) == result["tokens"]
    assert result["sha256"] == manifest.sha256
    assert result["source_bytes"] == sum(entry.total_bytes for entry in source.splits.values())
    # Line ends became spaces, one byte for one byte.
    assert result["changed_documents"] == 60 and result["text_bytes"] == result["source_bytes"]
    assert verify_dataset("toy-tokens") == []
    (listed,) = cli.document("tokenizer", "list")["tokenizers"]
    assert listed["name"] == "small" and listed["sha256"] == tokenizer.sha256
    assert "toy-tokens" in {entry["name"] for entry in cli.document("data", "list")["datasets"]}


@pytest.mark.parametrize("option", ["--normalisation=identity", "--caseops"])
def test_every_byte_is_kept(option: str, cli: CommandLine) -> None:
    trained = cli.document("tokenizer", "train", "same", "toy", "--vocab-size", "330", option)
    assert trained["normalisation"] == "identity" and trained["caseops"] == (option == "--caseops")
    texts = [
        " a space",
        "iPhone NASA \ue001\ue004\ue004 \u0130I",
        "\u2581 its mark \u2581",
        "  ",
        "\u2581",
        "\u2102\ufb01\r\n\t \0 <s>",
    ]
    Path("more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    import_dataset("more", [Path("more.jsonl"), Path("text.jsonl")], split="train")
    result = cli.document("tokenizer", "encode", "same-tokens", "more", "--tokenizer", "same")
    stored = list(open_split("same-tokens", "train", vocabulary_of(load_manifest("same-tokens"))).documents())
    assert stored == documents_of("more", "train")
    assert result["changed_documents"] == 0 and result["text_bytes"] == result["source_bytes"]


@pytest.mark.parametrize("engine", available_engines())
def test_train_pack_score_and_generate(engine: str, cli: CommandLine) -> None:
    if engine == "torch":
        # One engine with CaseOps: prompt and text have capitals, of which the model sees the sentinels.
        cli.document("tokenizer", "train", "small", "toy", "--vocab-size", "330", "--caseops", "--replace")
        cli.document("tokenizer", "encode", "toy-tokens", "toy", "--tokenizer", "small", "--replace")
        assert (
            load_manifest("toy-tokens").splits["heldout"].total_bytes
            == load_manifest("toy").splits["heldout"].total_bytes
        )
    cli.document("train", "spec.toml", "--engine", engine, "--run", "run")
    sha256 = find_tokenizer("small").sha256
    assert load_spec("runs/run/spec.toml").vocabulary.tokenizer == sha256
    heldout = load_manifest("toy-tokens").splits["heldout"]
    for word in ("run", "runs/run/artifact.btw"):
        score = cli.document("score", word, "--engine", engine)
        assert score["bytes"] == heldout.total_bytes and score["documents"] == heldout.num_documents
        assert score["symbols"] == (heldout.shards[0].bytes - HEADER_BYTES) // 2 < score["bytes"]
        assert score["audit"]["passed"]
        assert all(result["compressed_bytes"] > 0 for result in score["compressors"].values())
    told = cli.document("generate", "run", "--prompt", "The cat SAT", "--bytes", "40", "--engine", engine)
    assert 0 < len(told["text"].encode()) <= 40
    again = cli.document("train", "spec.toml", "--engine", engine, "--run", "run", "--resume")
    assert again["status"] == "finished"


@pytest.mark.parametrize("engine", available_engines())
def test_a_symbol_outside_the_vocabulary_names_its_shard_and_position(engine: str, cli: CommandLine) -> None:
    cli.document("train", "spec.toml", "--engine", engine, "--run", "good", "--no-finish")
    bad = dataset_with(datasets_root() / "toy-tokens", "bad", 330)
    for split, words in (
        ("train", ("train", "spec.toml", "--engine", engine, "--run", "new", "--set", "data.train=bad")),
        ("heldout", ("score", "good", "--engine", engine, "--data", "bad")),
        ("heldout", ("audit", "good", "--engine", engine, "--data", "bad")),
    ):
        done = cli(*words)
        *_, message = done.err.splitlines()
        assert done.status == 2 and message.startswith("bytetwin: "), done
        expected = rf"{bad / split}_000000.bin: symbol 330 at position \d*[27]5 is outside the vocabulary of 330"
        assert re.search(expected, message), message
    assert "symbol 330 at position 25" in verify_dataset("bad")[0]


def dataset_with(source: Path, name: str, token: int) -> Path:
    """A copy of a dataset in which every 50th token is this one, with hashes that are right."""
    folder = source.with_name(name)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*sketch*", "compressors*"))
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            path = folder / shard["file"]
            content = np.fromfile(path, "<u2")
            content[HEADER_BYTES // 2 + 25 :: 50] = token
            content.tofile(path)
            shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    splits = {split: SplitEntry.model_validate(entry) for split, entry in manifest["splits"].items()}
    manifest |= {"name": name, "sha256": dataset_hash(manifest["vocabulary"], splits)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_text_without_a_space_gives_a_tokenizer_with_one(cli: CommandLine) -> None:
    """Chinese and Japanese; the one document with a space is too rare to give it a piece."""
    text = Path("nospace.jsonl")
    texts = [
        "\u4eca\u65e5\u306f\u826f\u3044\u5929\u6c17\u3067\u3059\u3002" * 60,
        "\u660e\u65e5\u3082\u6674\u308c\u308b\u3002" * 60,
        "\u4eca \u65e5",
    ]
    for name, chosen in (("none", texts[:2]), ("few", texts)):
        text.write_text("".join(json.dumps({"text": document}) + "\n" for document in chosen))
        import_dataset(name, [text], split="train")
        for normalisation in ("nmt_nfkc", "identity"):
            words = ("--vocab-size", "400", "--normalisation", normalisation, "--replace")
            cli.document("tokenizer", "train", "ja", name, *words)
            result = cli.document("tokenizer", "encode", "ja-tokens", name, "--tokenizer", "ja", "--replace")
            assert result["changed_documents"] == 0
            assert find_tokenizer("ja").encode(["\u4eca \u65e5"])[0].size < 10
            assert verify_dataset("ja-tokens") == []


def test_text_without_characters_gives_no_tokenizer(cli: CommandLine) -> None:
    Path("nul.jsonl").write_text(json.dumps({"text": "\0" * 500}), encoding="utf-8")
    import_dataset("nul", [Path("nul.jsonl")], split="train")
    assert "nothing but white space and control characters" in cli.refusal("tokenizer", "train", "x", "nul")


def test_audit_and_numpy_need_no_training(cli: CommandLine) -> None:
    document = cli.document("audit", "spec.toml", "--engine", "numpy")
    assert document["passed"], document
    assert document["spec_id"] == cli.document("audit", "spec.toml", "--engine", "numpy")["spec_id"]


def test_another_tokenizer_is_refused_in_one_line(cli: CommandLine) -> None:
    engine = available_engines()[0]
    cli.document("train", "spec.toml", "--engine", engine, "--run", "run")
    cli.document("tokenizer", "train", "same", "toy", "--vocab-size", "330", "--normalisation", "identity")
    cli.document("tokenizer", "encode", "other", "toy", "--tokenizer", "same")
    one, two = find_tokenizer("small").sha256, find_tokenizer("same").sha256
    message = cli.refusal("score", "run", "--data", "other")
    assert one[:16] in message and two[:16] in message
    assert "holds bytes, the model reads tokens" in cli.refusal("score", "run", "--data", "toy")
    assert "byte256 reads bytes" in cli.refusal("audit", "tiny", "--data", "toy-tokens")
    # A run goes on with the tokenizer it began with, even if its dataset was made anew.
    cli.document("tokenizer", "encode", "toy-tokens", "toy", "--tokenizer", "same", "--replace")
    assert "vocabulary.tokenizer" in cli.refusal("train", "spec.toml", "--engine", engine, "--run", "run", "--resume")
    Path("size.toml").write_text(SPEC.replace("vocab_size = 330", "vocab_size = 331"))
    assert "tokenizer of 330 tokens; vocabulary.vocab_size is 331" in cli.refusal("audit", "size.toml")


def test_generating_needs_the_tokenizer(cli: CommandLine) -> None:
    cli.document("train", "spec.toml", "--engine", available_engines()[0], "--run", "run", "--no-finish")
    for path in datasets_root().rglob("*.model"):
        path.unlink()
    assert "no tokenizer with SHA-256" in cli.refusal("generate", "run", "--engine", "numpy")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "small", "toy"], "tokenizer 'small' exists"),
        (["train", "tiny", "toy", "--vocab-size", "260"], "--vocab-size 260: must be from 261 to 65,536"),
        (["train", "tiny", "toy", "--vocab-size", "261"], "cannot be trained on 'toy': it needs 2"),
        (["train", "new", "toy-tokens"], "holds tokens already"),
        (["train", "new", "toy", "--caseops", "--normalisation", "nmt_nfkc"], "must be identity with --caseops"),
        (["train", "../new", "toy"], "use letters"),
        (["encode", "toy-tokens", "toy", "--tokenizer", "small"], "dataset 'toy-tokens' exists"),
        (["encode", "new", "toy", "--tokenizer", "ghost"], "no tokenizer 'ghost'"),
        (["encode", "new", "toy", "--tokenizer", "ghost.model"], "cannot read the tokenizer"),
        (["encode", "new", "toy-tokens", "--tokenizer", "small"], "holds tokens already"),
        (["encode", "tokenizers", "toy", "--tokenizer", "small"], "choose another"),
        (["encode", "builtin", "toy", "--tokenizer", "small"], "taken by the built-in corpus"),
    ],
)
def test_what_is_refused(words: list[str], message: str, cli: CommandLine) -> None:
    assert message in cli.refusal("tokenizer", *words)
    assert sorted(path.name for path in datasets_root().iterdir()) == ["tokenizers", "toy", "toy-tokens"]


def test_damage_is_found() -> None:
    folder = datasets_root() / "toy-tokens"
    shard = folder / "heldout_000000.bin"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 3
    shard.write_bytes(content)
    assert "SHA-256" in verify_dataset("toy-tokens")[0]
    (folder / "tokenizer.model").write_bytes(b"no model")
    assert any("tokenizer.model" in problem for problem in verify_dataset("toy-tokens"))
