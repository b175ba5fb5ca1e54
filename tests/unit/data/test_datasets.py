"""Datasets on disk: whole or absent, opened strictly, verified byte by byte."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import writer
from data.datasets import load_manifest, open_split, verify_dataset
from data.folders import dataset_names, datasets_root
from data.opening import existing_manifest
from data.shards import ShardWriter
from data.writer import DatasetWriter
from shared.errors import DataError
from shared.spec import VocabularySpec
from tests.datasets import BYTES, documents_of, full_disk, write_dataset, written
from tests.processes import run_python

TRAIN = [b"the first document", b"the second", b"a third one"]
HELDOUT = [b"held out"]
pytestmark = pytest.mark.usefixtures("datasets")


def write(name: str = "toy", train: list[bytes] = TRAIN, **options: Any) -> Path:
    return write_dataset(name, train=train, heldout=HELDOUT, **options)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def refusal(name: str = "toy", split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        open_split(name, split, BYTES)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip_with_small_shards() -> None:
    folder = write(max_shard_symbols=7)
    manifest = load_manifest("toy")
    assert [shard.bytes - 1024 for shard in manifest.splits["train"].shards] == [7, 7, 7, 7, 7, 4]
    assert documents_of("toy", "train") == TRAIN
    assert documents_of("toy", "heldout") == HELDOUT
    assert verify_dataset("toy") == []
    assert sorted(path.name for path in datasets_root().iterdir()) == ["toy"]
    starts = np.frombuffer((folder / "train_documents.bin").read_bytes(), dtype="<i8")
    assert starts.tolist() == [0, 18, 28]


@settings(max_examples=40)
@given(documents=st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=6), shard=st.integers(1, 40))
def test_any_documents_in_any_shard_size(
    tmp_path_factory: pytest.TempPathFactory, documents: list[bytes], shard: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYTETWIN_DATASETS", str(tmp_path_factory.mktemp("root")))
        write(train=documents, max_shard_symbols=shard)
        stream = open_split("toy", "train", VocabularySpec(kind="byte260"))
        assert list(stream.documents()) == documents
        expected = [symbol for document in documents for symbol in (1, *(byte + 4 for byte in document))]
        assert stream.read(0, stream.num_symbols).tolist() == expected


def test_hashes_are_of_content_not_of_names() -> None:
    write("one")
    write("two")
    write("three", train=TRAIN[::-1])
    # The same bytes with other document boundaries are other data.
    write("four", train=[b"".join(TRAIN)])
    hashes = [open_split(name, "train", BYTES).sha256 for name in ("one", "two", "three", "four")]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert open_split("one", "heldout", BYTES).sha256 == open_split("three", "heldout", BYTES).sha256
    assert load_manifest("one").sha256 != load_manifest("three").sha256


def test_an_existing_name_is_refused_and_replace_replaces() -> None:
    write()
    with pytest.raises(DataError, match=r"dataset 'toy' exists in .*; --replace overwrites it"):
        write(train=[b"other"])
    assert documents_of("toy", "train") == TRAIN
    write(train=[b"other"], replace=True)
    assert documents_of("toy", "train") == [b"other"]
    assert dataset_names() == ["toy"]
    assert len(list(datasets_root().iterdir())) == 1


def test_the_loser_of_a_race_keeps_the_winners_dataset() -> None:
    folder = datasets_root() / "toy"
    with DatasetWriter(folder, keep_existing=True) as loser:
        loser.add("train", [b"late"])
        write()
        loser.finish("a test")
    assert documents_of("toy", "train") == TRAIN
    with pytest.raises(DataError, match="exists"), DatasetWriter(datasets_root() / "new") as second:
        second.add("train", [b"late"])
        write("new")
        second.finish("a test")
    assert sorted(path.name for path in datasets_root().iterdir()) == ["new", "toy"]


def test_a_dataset_is_as_readable_as_other_files() -> None:
    folder = write()
    plain = datasets_root() / "plain"
    plain.mkdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("failing_write", [1, 2, 5])
def test_a_full_disk_is_one_line_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, failing_write: int) -> None:
    writes = iter([*[ShardWriter.write] * (failing_write - 1), full_disk])
    monkeypatch.setattr(ShardWriter, "write", lambda *words: next(writes)(*words))
    with pytest.raises(DataError, match=r"cannot write dataset 'toy' in .*: no space left on device; nothing was kept"):
        write()
    assert list(datasets_root().iterdir()) == []


@pytest.mark.parametrize("method", ["close", "__init__"])
def test_a_disk_that_fills_up_late_or_early(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    write("old")
    monkeypatch.setattr(ShardWriter, method, full_disk)
    with pytest.raises(DataError, match="no space left on device"):
        write()
    with pytest.raises(DataError, match="no space left on device"):
        write("old", replace=True)
    assert [path.name for path in datasets_root().iterdir()] == ["old"]
    assert verify_dataset("old") == []


def test_a_file_that_the_kernel_refuses_to_grow(tmp_path: Path) -> None:
    text = written(tmp_path / "big.txt", b"x" * 3_000_000)
    program = (
        "import resource, sys; from pathlib import Path; from data.importing import import_dataset\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "try: import_dataset('toy', [Path(sys.argv[1])])\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    printed = run_python(program, text)
    assert printed.startswith("DataError cannot write dataset 'toy'")
    assert printed.count("\n") == 1
    assert list(datasets_root().iterdir()) == []


def test_an_unwritable_root_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BYTETWIN_DATASETS", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot write dataset 'toy'"):
        write()


def test_a_dataset_without_documents_is_refused() -> None:
    with (
        pytest.raises(DataError, match="dataset 'toy': no document with text"),
        DatasetWriter(datasets_root() / "toy") as w,
    ):
        w.finish("a test")
    assert list(datasets_root().iterdir()) == []


def test_unknown_names() -> None:
    write()
    assert "no dataset 'ghost'" in refusal("ghost")
    assert "there are: builtin, toy" in refusal("ghost")
    with pytest.raises(DataError, match="there are: toy;"):
        existing_manifest("builtin")
    assert "dataset name '../toy'" in refusal("../toy")
    assert "dataset name ''" in refusal("")
    assert "300 characters; allowed are 200" in refusal("x" * 300)
    write("x" * 200)
    write("x" * 200, replace=True)
    assert "split 'test': must be one of train, heldout" in refusal(split="test")


def shard(version: int, count: int, text: bytes = b"".join(TRAIN)) -> bytes:
    return np.array([20240520, version, count, *[0] * 253], "<i4").tobytes() + text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train_000000.bin", shard(2, 39)[:-1], "train_000000.bin: the file has 1062 bytes but its header counts 39"),
        ("train_000000.bin", bytes(1063), "magic number 0, not 20240520"),
        ("train_000000.bin", shard(1, 20) + b"\0", "shard version 1 in a byte dataset; allowed is 2"),
        ("train_000000.bin", shard(2, 38)[:-1], "1062 bytes; the manifest says 1063"),
        ("train_000000.bin", None, "train_000000.bin: the shard is missing"),
        *(
            ("train_documents.bin", np.array(starts, "<i8").tobytes(), message)
            for starts, message in [
                ([0, 18], "2 document starts; the manifest says 3"),
                ([1, 18, 28], "document starts must begin at 0"),
                ([0, 28, 18], "document starts must begin at 0, increase"),
                ([0, 18, 18], "document starts must begin at 0, increase"),
                ([0, 18, 39], "stay below the 39 bytes of text"),
                ([], "cannot read the document starts"),
            ]
        ),
        ("train_documents.bin", bytes(21), "cannot read the document starts"),
        ("train_documents.bin", None, "the file of document starts is missing"),
        ("manifest.json", b"{", "damaged manifest, the whole file"),
        ("manifest.json", b"\xff\xfe", "damaged manifest, the whole file"),
        ("manifest.json", None, "the dataset has no manifest"),
    ],
)
def test_a_damaged_or_missing_file(file: str, content: bytes | None, message: str) -> None:
    path = write() / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert message in refusal()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(format=2), "damaged manifest, format"),
        (lambda values: values.update(extra=1), "damaged manifest, extra"),
        (lambda values: values.pop("source"), "damaged manifest, source"),
        (lambda values: values.update(name="other"), "the manifest is of dataset 'other', not 'toy'"),
        (lambda values: values.update(splits={}), "damaged manifest, splits"),
        (lambda values: values["splits"].update(test=values["splits"]["train"]), "damaged manifest, splits.test"),
        (lambda values: values["splits"]["train"]["shards"].clear(), "damaged manifest, splits.train.shards"),
        (lambda values: values["splits"]["train"]["shards"][0].update(file="../../x"), "shards.0.file"),
        (lambda values: values["splits"]["train"].update(total_bytes=-1), "splits.train.total_bytes"),
        (lambda values: values["splits"]["train"].update(total_bytes="39"), "splits.train.total_bytes"),
        (lambda values: values["splits"]["train"].update(total_bytes=38), "its entries make"),
        (lambda values: values.update(vocabulary="ab" * 32), "its entries make"),
        (lambda values: values["splits"]["train"].update(num_documents=float("nan")), "splits.train.num_documents"),
        (lambda values: values["splits"]["train"].update(num_documents=10**4000), "splits.train.num_documents"),
        (lambda values: values["splits"]["train"].update(num_documents=10**20), "splits.train.num_documents"),
        (lambda values: values.update({"x\n\x1b[31m" * 1000: 1}), "damaged manifest, x\\n\\x1b[31m"),
        (lambda values: values.update(name="x" * 201), "damaged manifest, name"),
    ],
)
def test_a_lying_manifest(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    folder = write()
    edit_manifest(folder, change)
    assert message in refusal() and len(refusal()) < 500
    assert message in verify_dataset("toy")[0]


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}", bytes(1 << 25)])
def test_a_manifest_that_is_too_much(content: bytes) -> None:
    (write() / "manifest.json").write_bytes(content)
    assert "manifest.json: " in refusal() and len(refusal()) < 500


@pytest.mark.parametrize("file", ["manifest.json", "train_000000.bin", "train_documents.bin"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path)])
def test_something_else_in_place_of_a_file(file: str, make: Callable[[Path], None]) -> None:
    path = write() / file
    path.unlink()
    make(path)
    assert file in refusal()
    assert any(file in problem for problem in verify_dataset("toy"))


@pytest.mark.parametrize(
    "file", ["train_000000.bin", "train_documents.bin", "heldout_000000.bin", "heldout_documents.bin"]
)
def test_verify_finds_one_flipped_bit(file: str) -> None:
    path = write() / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (problem,) = verify_dataset("toy")
    assert problem.startswith(f"{path}: SHA-256")
    path.unlink()
    assert verify_dataset("toy") == [f"{path}: missing"]


def test_verify_finds_text_that_is_no_utf8() -> None:
    write(train=[b"fine", b"bad \xff"])
    assert verify_dataset("toy") == ["toy/train: document 1 is not UTF-8 at its byte 4"]


def test_half_written_and_foreign_folders_are_no_datasets() -> None:
    write()
    for name in (".toy.partial-abc", "notes"):
        (datasets_root() / name).mkdir()
    (datasets_root() / ".toy.partial-abc" / "manifest.json").write_text("{}")
    assert dataset_names() == ["toy"]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("stop", [OSError(5, "input/output error"), KeyboardInterrupt(), ValueError("anything")])
def test_an_old_dataset_stays_until_the_new_one_is_whole(
    monkeypatch: pytest.MonkeyPatch, at_once: bool, stop: BaseException
) -> None:
    """Whatever is called last, down to the names: it raises, and the old dataset is there."""
    write()

    def fail(*_: object, **__: object) -> None:
        raise stop

    if not at_once:  # A file system that cannot exchange two names.
        monkeypatch.setattr(writer, "exchange", lambda *_: False)
    places = [(writer, "read_manifest"), (writer, "sync_folder"), (writer, "_file_entry"), (ShardWriter, "close")]
    places += [(writer, "exchange")] if at_once else [(Path, "replace"), (Path, "rename")]
    for owner, name in places:
        with monkeypatch.context() as patch, pytest.raises((DataError, type(stop))):
            patch.setattr(owner, name, renaming_once(fail) if name == "rename" else fail)
            write(train=[b"other"], replace=True)
        assert documents_of("toy", "train") == TRAIN, name
        assert verify_dataset("toy") == []
        assert [path.name for path in datasets_root().iterdir()] == ["toy"]
    write(train=[b"other"], replace=True)
    assert documents_of("toy", "train") == [b"other"]
    assert [path.name for path in datasets_root().iterdir()] == ["toy"]


def renaming_once(fail: Callable[..., None]) -> Callable[..., Any]:
    """A method of Path that fails when it is called first."""
    rename, calls = Path.rename, iter([fail])
    return lambda path, target: next(calls, rename)(path, target)


def test_a_manifest_that_cannot_be_read_back_is_never_put_in_place() -> None:
    write()
    with (
        pytest.raises(DataError, match="damaged manifest, the whole file: Invalid JSON: lone leading surrogate"),
        DatasetWriter(datasets_root() / "toy", replace=True) as w,
    ):
        w.add("train", [b"other"])
        w.finish("a name that is not UTF-8: \udce9")
    assert documents_of("toy", "train") == TRAIN
    assert [path.name for path in datasets_root().iterdir()] == ["toy"]
