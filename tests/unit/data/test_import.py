"""Importing every file type, and one clear line for every file that cannot be imported."""

from __future__ import annotations

import codecs
import gzip
import importlib
import io
import json
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data import importers, unpacking
from data.datasets import open_split, verify_dataset
from data.folders import datasets_root
from data.importers import read_documents
from data.importing import ImportResult, import_dataset
from shared.errors import DataError
from tests.datasets import BYTES, documents_of, written
from tests.processes import run_python

pytestmark = pytest.mark.usefixtures("datasets")
TEXTS = ["First document.\n", "Zweites Dokument: \u00e4\u00f6\u00fc \u20ac \U0001f600", "third\r\nline"]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def jsonl(texts: list[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({field: text, "id": index}).encode() + b"\n" for index, text in enumerate(texts))


def texts_of(name: str, split: str) -> list[str]:
    return [document.decode() for document in documents_of(name, split)]


def import_train(path: Path, **options: Any) -> ImportResult:
    return import_dataset("toy", [path], split="train", **options)


def parquet(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def error_of(path: Path, **options: Any) -> str:
    """The message of a refused import, which left nothing behind."""
    with pytest.raises(DataError) as caught:
        import_train(path, **options)
    assert "\n" not in str(caught.value)
    assert not datasets_root().exists() or list(datasets_root().iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".txt", ".md", ".TXT"])
def test_lines_of_json_are_documents_and_a_text_file_is_one(tmp_path: Path, suffix: str, packing: str) -> None:
    is_json = suffix in (".jsonl", ".ndjson")
    texts = TEXTS if is_json else ["\n".join(TEXTS)]
    content = jsonl(texts) if is_json else texts[0].encode()
    import_train(written(tmp_path / f"text{suffix}{packing}", PACKERS[packing](content)))
    assert texts_of("toy", "train") == texts
    assert verify_dataset("toy") == []


def test_parquet_with_empty_and_missing_values(tmp_path: Path) -> None:
    path = parquet(tmp_path / "text.parquet", body=[TEXTS[0], None, "  ", *TEXTS[1:]], id=[1, 2, 3, 4, 5])
    result = import_train(path, text_field="body")
    assert texts_of("toy", "train") == TEXTS
    assert result.left_out == {"documents whose text is null": 1, "empty documents": 1}


def test_lines_of_json_follow_the_same_rules(tmp_path: Path) -> None:
    lines = [{"text": None}, {"text": "  "}, *({"text": text, "n": 10**4} for text in TEXTS)]
    content = "".join(json.dumps(line) + "\n" for line in lines).replace("10000", "9" * 5000)
    result = import_train(written(tmp_path / "text.jsonl", content.encode()))
    assert texts_of("toy", "train") == TEXTS
    assert result.left_out == {"documents whose text is null": 1, "empty documents": 1}


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst", ""])
@pytest.mark.parametrize("piece", [1, 2, 1 << 20])
def test_a_byte_order_mark_is_no_text(
    tmp_path: Path, packing: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "PIECE_BYTES", piece)
    (tmp_path / f"a.jsonl{packing}").write_bytes(PACKERS[packing](codecs.BOM_UTF8 + jsonl(["one", "\ufefftwo"])))
    (tmp_path / f"b.txt{packing}").write_bytes(PACKERS[packing](codecs.BOM_UTF8 + b"three"))
    (tmp_path / f"c.txt{packing}").write_bytes(PACKERS[packing](codecs.BOM_UTF8))
    result = import_train(tmp_path)
    assert texts_of("toy", "train") == ["one", "\ufefftwo", "three"]
    assert result.left_out == {"byte order marks at the start of a file": 3, "empty documents": 1}


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "text.parquet", text=TEXTS)
    real_import = importlib.import_module

    def without_pyarrow(name: str) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real_import(name)

    monkeypatch.setattr(importers.importlib, "import_module", without_pyarrow)
    assert "needs pyarrow; install it with the extra: bytetwin[data]" in error_of(path)


def test_folders_are_walked_in_sorted_order(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    for name in ("b.txt", "a/z.md", "a/b/c.txt", "c.jsonl", "notes.pdf", ".hidden.txt", ".git/x.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jsonl([name]) if name.endswith("jsonl") else name.encode())
    (folder / "loop").symlink_to(folder)
    (folder / "linked.md").symlink_to("b.txt")
    (folder / "gone.txt").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.txt")
    result = import_train(folder)
    assert texts_of("toy", "train") == ["a/b/c.txt", "a/z.md", "b.txt", "c.jsonl", "b.txt"]
    assert result.num_files == 5
    assert result.left_out == {
        "files of other types": 1,
        "hidden files and folders": 2,
        "links to folders": 1,
        "links to nothing, pipes, sockets or devices": 2,
    }


def test_empty_documents_are_dropped_and_counted(tmp_path: Path) -> None:
    result = import_train(written(tmp_path / "text.jsonl", b"\n" + jsonl(["", "one", " \n\t", "two"]) + b"\n\n"))
    assert texts_of("toy", "train") == ["one", "two"]
    assert result.left_out == {"empty documents": 2}


def test_equal_texts_fall_on_the_same_side(tmp_path: Path) -> None:
    texts = [f"document {index}" for index in range(400)]
    import_dataset("toy", [written(tmp_path / "text.jsonl", jsonl(texts + texts))], heldout_frac=0.25)
    train, heldout = texts_of("toy", "train"), texts_of("toy", "heldout")
    assert not set(train) & set(heldout)
    assert sorted(train + heldout) == sorted(texts + texts)
    assert 60 <= len(set(heldout)) <= 140


def test_the_split_does_not_depend_on_the_kind_of_file(tmp_path: Path) -> None:
    texts = [f"document {index}" for index in range(40)]
    (tmp_path / "lines.jsonl").write_bytes(jsonl(texts))
    (tmp_path / "files").mkdir()
    for index, text in enumerate(texts):
        (tmp_path / "files" / f"{index:03}.txt").write_text(text)
    hashes = {
        import_dataset(name, [path], heldout_frac=0.5).manifest.sha256
        for name, path in (("lines", tmp_path / "lines.jsonl"), ("files", tmp_path / "files"))
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(("fraction", "present", "absent"), [(0.0, "train", "heldout"), (1.0, "heldout", "train")])
def test_a_fraction_of_nothing_or_all(tmp_path: Path, fraction: float, present: str, absent: str) -> None:
    import_dataset("toy", [written(tmp_path / "text.jsonl", jsonl(TEXTS))], heldout_frac=fraction)
    assert texts_of("toy", present) == TEXTS
    with pytest.raises(DataError, match=f"dataset 'toy' has no {absent} split; it has: {present}"):
        open_split("toy", absent, BYTES)


@settings(max_examples=60)
@given(
    texts=st.lists(st.text(), min_size=1, max_size=8), packing=st.sampled_from(sorted(PACKERS)), piece=st.integers(1, 9)
)
def test_any_text_survives_any_piece_size(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], packing: str, piece: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    lines, whole = folder / f"a.jsonl{packing}", folder / f"a.txt{packing}"
    lines.write_bytes(PACKERS[packing](jsonl(texts)))
    content = "".join(texts).encode()
    whole.write_bytes(PACKERS[packing](content))
    texts = [text for text in texts if text.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacking, "PIECE_BYTES", piece)
        patch.setattr(unpacking, "ZSTD_INPUT_BYTES", piece)
        assert [b"".join(document()).decode() for document in read_documents(lines)] == texts
        content = content.removeprefix(codecs.BOM_UTF8)
        assert [b"".join(document()) for document in read_documents(whole)] == [content] * bool(
            content.decode().strip()
        )


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_files_of_several_streams(tmp_path: Path, packing: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "PIECE_BYTES", piece)
    padding = b"" if packing == ".zst" else bytes(4)
    parts = [PACKERS[packing](jsonl([text])) for text in TEXTS]
    path = written(tmp_path / f"text.jsonl{packing}", padding.join(parts) + 2 * padding)
    import_train(path)
    assert texts_of("toy", "train") == TEXTS
    for damaged in (parts[0] + parts[1][2:], parts[0] + padding + b"more", parts[0] + parts[1][:-3], b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"damaged {packing[1:]} file"):
            import_train(path, replace=True)
    assert texts_of("toy", "train") == TEXTS


def test_padding_of_xz_streams_is_a_multiple_of_four(tmp_path: Path) -> None:
    stream = lzma.compress(jsonl(TEXTS))
    for content in (stream + bytes(3), stream + bytes(6) + stream, bytes(4) + stream):
        assert "damaged xz file" in error_of(written(tmp_path / "a.jsonl.xz", content))


def test_what_needs_much_memory_to_unpack_says_how_to_compress_again(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = written(tmp_path / "a.txt.zst", packer.compress(b"text" * 1000) + packer.flush())
    message = error_of(path)
    assert "it needs a window of 268,435,456 bytes to unpack; allowed are 134,217,728" in message
    assert "`zstd -dc --long=31 FILE | zstd > NEW`" in message
    path = written(
        tmp_path / "a.txt.xz", lzma.compress(b"text", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}])
    )
    assert "it needs too much memory to unpack" in error_of(path)


BOMBS = {
    "a.txt.zst": lambda: rle_frames(b"a"),
    "a.jsonl.zst": lambda: rle_frames(b"a"),
    "blank.jsonl.zst": lambda: rle_frames(b"\n"),
    "a.jsonl.xz": lambda: lzma.compress(bytes(30_000_000)),
    "a.txt.gz": lambda: gzip.compress(b"a" * 30_000_000),
    "deep.jsonl": lambda: b'{"text": "a", "x": [' + b",".join([b'{"":0}'] * 1_100_000) + b"]}\n" + jsonl(["b"]),
    "one.parquet": lambda: dictionary_parquet(1 << 20, 100),
    "long.parquet": lambda: dictionary_parquet(40_000_000, 2),
}


def rle_frames(byte: bytes) -> bytes:
    """A frame of 1 GB in 32 KB: blocks of one repeated byte, 4 bytes for 128 KiB each."""
    block, last = (((1 << 17) << 3 | 1 << 1 | is_last).to_bytes(3, "little") + byte for is_last in (0, 1))
    return bytes.fromhex("28b52ffd0038") + block * 8000 + last


def dictionary_parquet(text_bytes: int, num_rows: int) -> bytes:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array(["a" * text_bytes]))
    file = io.BytesIO()
    pq.write_table(pa.table({"text": column}), file, compression="zstd")
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_little_memory(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, BOMBS[name]())
    program = (
        # In a process of its own: the peak of one that was started counts what its parent had at that time.
        "import os, resource, sys; from pathlib import Path\n"
        "if pid := os.fork(): sys.exit(os.waitpid(pid, 0)[1])\n"
        "from data.importing import import_dataset\n"
        "try: print(import_dataset('toy', [Path(sys.argv[1])], split='train').manifest.splits['train'].num_documents)\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(peak // (1 << 20 if sys.platform == 'darwin' else 1 << 10))\n"
    )
    told, peak_mb = run_python(program, path).splitlines()
    allowed = {"deep.jsonl": "2", "a.txt.gz": "1"}.get(
        name, "DataError .*(of it unpack to|more than 8,000,000 bytes).*"
    )
    assert re.fullmatch(allowed, told), told
    assert int(peak_mb) < 500, told


def test_progress_counts_every_byte_of_the_files(tmp_path: Path) -> None:
    for name, packing in (("a.jsonl", ""), ("b.jsonl.xz", ".xz"), ("c.jsonl.zst", ".zst"), ("d.txt.gz", ".gz")):
        (tmp_path / name).write_bytes(PACKERS[packing](jsonl(TEXTS)))
    parquet(tmp_path / "e.parquet", text=TEXTS)
    seen: list[tuple[int, int]] = []
    import_train(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == sum(path.stat().st_size for path in tmp_path.glob("*.*"))
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nfine\nbad \xff here", "a.txt line 3: not UTF-8 (byte 0xff); `iconv -f ITS-ENCODING "),
        ("a.txt", "UTF-16".encode("utf-16"), "a.txt line 1: not UTF-8 (byte 0xff); `iconv -f UTF-16 -t UTF-8 "),
        ("a.txt", b"cut \xe2\x82", "a.txt line 1: not UTF-8 (byte 0xe2)"),
        ("a.md", b"latin \xe9t\xe9", "a.md line 1: not UTF-8 (byte 0xe9)"),
        ("a.jsonl", jsonl(["ok"]) + b'{"text": "\xff"}\n', "a.jsonl line 2: not UTF-8 at byte 11 of the line"),
        ("a.jsonl", jsonl(["ok"]) + b"{nonsense\n", "a.jsonl line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1: not JSON"),
        ("a.jsonl", b'"text"\n', "a.jsonl line 1: a JSON str; each line must be an object"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', "line 1: no field 'text'; fields: body, id (see --text-field)"),
        ("a.jsonl", b'{"text": 5}\n', "a.jsonl line 1: the text is of type int; it must be a string"),
        ("a.jsonl", b'{"text": "ab\\ud800"}\n', "a.jsonl line 1: character 3 is a lone surrogate"),
        ("a.jsonl", b"", "no document with text"),
        ("a.txt", b" \n ", "no document with text"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz: damaged gz file"),
        ("a.jsonl.xz", b"not xz at all", "a.jsonl.xz: damaged xz file"),
        ("a.jsonl.zst", b"not zstd", "a.jsonl.zst: damaged zst file"),
        ("a.parquet", b"not parquet", "a.parquet: damaged or unreadable parquet file"),
        ("a.pdf", b"%PDF", "a.pdf: unknown file type; allowed are .txt, .md, .jsonl, .ndjson, each also with .gz"),
        ("a.parquet.gz", b"", "a.parquet.gz: unknown file type"),
        *(
            (f"a.txt{packing}", b"", f"damaged {packing[1:]} file (it has no bytes)")
            for packing in (".gz", ".xz", ".zst")
        ),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert message in error_of(written(tmp_path / name, content))


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_a_truncated_file_is_damaged_not_short(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.jsonl{packing}"
    packed = PACKERS[packing](jsonl([f"{index} {index**9}" for index in range(5000)]))
    path.write_bytes(packed[: len(packed) * 2 // 3])
    assert f"damaged {packing[1:]} file" in error_of(path)


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=TEXTS * 500)
    path.write_bytes(path.read_bytes()[:-20])
    assert "damaged or unreadable parquet file" in error_of(path)


def test_a_parquet_column_that_is_missing_or_no_text(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", id=[7], body=["x"])
    assert "no column 'text'; columns: id, body (see --text-field)" in error_of(path)
    assert "row 1: the text is of type int; it must be a string or null" in error_of(path, text_field="id")


def test_bad_utf8_across_pieces_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "PIECE_BYTES", 3)
    path = written(tmp_path / "a.txt", "\u20ac\n\u20ac\n".encode() * 5 + b"\xe2\x82" + b"x\n")
    assert "a.txt line 11: not UTF-8 (byte 0xe2)" in error_of(path)


def test_a_line_too_long_to_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (unpacking, importers):
        monkeypatch.setattr(module, "PIECE_BYTES", 64)
    monkeypatch.setattr(importers, "MAX_DOCUMENT_BYTES", 1000)
    message = "a document of more than 1,000 bytes in one line or row"
    assert f"line 2: {message}" in error_of(written(tmp_path / "a.jsonl", jsonl(["x", "x" * 2000])))
    assert f"row 1 to 2: {message}" in error_of(parquet(tmp_path / "a.parquet", text=["x", "x" * 3000]))
    assert f"row 2: {message}" in error_of(parquet(tmp_path / "a.parquet", text=["x", "x" * 1500]))


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    assert "gone.txt: no such file or folder" in error_of(tmp_path / "gone.txt")
    assert "file name too long" in error_of(tmp_path / ("x" * 300 + ".txt"))
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    assert "loop.txt: too many levels of symbolic links" in error_of(tmp_path / "loop.txt")
    folder = tmp_path / "empty"
    folder.mkdir()
    assert "no file to import in this folder; allowed" in error_of(folder)
    (folder / "link").symlink_to(tmp_path)
    assert "no file to import in this folder; 1 links to folders in it; allowed" in error_of(folder)
    os.mkfifo(folder / "a.txt")
    assert "a.txt: a pipe, socket or device; it must be a regular file or a folder" in error_of(folder / "a.txt")


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_its_range(tmp_path: Path, fraction: float) -> None:
    assert "must be between 0 and 1" in error_of(written(tmp_path / "a.txt", b"text"), heldout_frac=fraction)
