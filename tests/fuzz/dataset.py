"""Datasets whose hashes are right, and files to import."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from data import compressed
from data.datasets import open_split, verify_dataset
from data.loader import Loader
from data.manifest import read_manifest
from data.opening import vocabulary_of
from tests.fuzz.mutate import TEXTS, Rng, change, change_file, change_tensors, damage, misplace, to_json
from tests.fuzz.worker import GOLDEN, Broken, Reader, command

NAMES = ("golden", "golden-tokens")
LINES = [{"text": f"document {number} of a text\nin two lines"} for number in range(8)]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sign(folder: Path, manifest: Any) -> Any:
    """A manifest with the sizes and hashes of the files that are there."""
    try:
        entries = [
            entry for split in manifest["splits"].values() for entry in (*split["shards"], split["document_starts"])
        ]
        for entry in [*entries, *([manifest["tokenizer"]] if manifest.get("tokenizer") else [])]:
            content = (folder / entry["file"]).read_bytes()
            entry["bytes"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
        if manifest.get("tokenizer"):
            manifest["vocabulary"] = manifest["tokenizer"]["sha256"]
        splits = {name: _hash(split) for name, split in manifest["splits"].items()}
        manifest["sha256"] = _hash({"vocabulary": manifest["vocabulary"], "splits": splits})
    except (KeyError, TypeError, AttributeError, OSError, ValueError, RecursionError):
        pass
    return manifest


def numbers(rng: Rng, content: bytes, kind: str, skip: int = 0) -> bytes:
    """Little-endian numbers of a file, one or all of them others."""
    values = np.frombuffer(content[skip:], kind).copy()
    at = rng.randrange(len(values))
    top = np.iinfo(kind).max
    match rng.randrange(4):
        case 0:
            values[at] = rng.choice((0, 1, top, 319, 320, 255, 128, 13, 3)) & top
        case 1:
            values[at:] = np.roll(values[at:], 1)
        case 2:
            values[rng.randrange(1, 50) :: rng.randrange(1, 50)] = rng.choice((0, 1, top, 319, 320, 255, 4)) & top
        case 3:
            values = values[: at + 1] if rng.random() < 0.5 else np.append(values, values[: at + 1])
    return content[:skip] + values.tobytes()


def change_header(rng: Rng, content: bytes) -> bytes:
    fields = np.frombuffer(content[:1024], "<i4").copy()
    fields[rng.randrange(4)] = rng.choice((0, 1, 2, 3, -1, 2**31 - 1, 20240520, 2**24, int(fields[2]) + 1))
    return fields.tobytes() + content[1024:]


def make(rng: Rng, folder: Path) -> Reader:
    os.environ["BYTETWIN_DATASETS"] = str(folder / "datasets")
    return make_import(rng, folder) if rng.random() < 0.4 else make_dataset(rng, folder)


def make_dataset(rng: Rng, folder: Path) -> Reader:
    name = rng.choice(NAMES)
    data = folder / "datasets" / name
    shutil.copytree(GOLDEN / "datasets" / name, data)
    manifest, split = json.loads((data / "manifest.json").read_bytes()), rng.choice(("train", "heldout"))
    kind, files = ("<u2" if name == "golden-tokens" else "u1"), sorted(data.iterdir())
    how = rng.randrange(20)
    if how < 3:
        change_file(rng, data / f"{split}_documents.bin", lambda content: numbers(rng, content, "<i8"))
        manifest["splits"][split]["num_documents"] = (data / f"{split}_documents.bin").stat().st_size // 8
    elif how < 7:
        change_file(rng, data / f"{split}_000000.bin", lambda content: numbers(rng, content, kind, 1024))
        if rng.random() < 0.5:
            shard = bytearray((data / f"{split}_000000.bin").read_bytes())
            shard[8:12] = ((len(shard) - 1024) // np.dtype(kind).itemsize).to_bytes(4, "little")
            (data / f"{split}_000000.bin").write_bytes(shard)
            if kind == "u1":
                manifest["splits"][split]["total_bytes"] = len(shard) - 1024
    elif how < 8:
        change_file(rng, data / f"{split}_000000.bin", lambda content: change_header(rng, content))
    elif how < 10 and name == "golden-tokens":
        change_file(rng, data / "tokenizer.model", lambda content: damage(rng, content))
    elif how < 12:
        change_file(
            rng,
            data / f"{split}_sketch.safetensors",
            lambda content: change_tensors(rng, content) if rng.random() < 0.5 else damage(rng, content),
        )
    elif how < 13:
        change_file(rng, next(data.glob("compressors*")), lambda content: to_json(change(rng, json.loads(content))))
    elif how < 15:
        change_file(rng, rng.choice(files), lambda content: damage(rng, content))
    elif how < 16:
        misplace(rng, rng.choice(files))
    signed = sign(data, manifest) if how < 11 or how > 16 else manifest
    if how > 15:
        signed = change(rng, signed)
        signed = sign(data, signed) if rng.random() < 0.5 else signed
    if how != 15:
        content = to_json(signed, indent=2)
        (data / "manifest.json").write_bytes(damage(rng, content) if how == 14 else content)
    way = rng.choice(("verify", "open", "open", "command"))

    def read() -> None:
        if way == "command":
            command(["data", "verify", name])
            command(["data", "list"])
            return
        problems = verify_dataset(name) if way == "verify" else []
        for each in ("train", "heldout"):
            stream = open_split(name, each, vocabulary_of(read_manifest(data)))
            loader = Loader(stream, 16, 4, 1)
            for step in range(3):
                loader.batch(step)
            text = stream.text_bytes()
            documents = list(stream.documents())
            counted = int(stream.byte_counts(0, stream.num_symbols).sum())
            stream.sample_documents(40, 0).text_bytes()
            stream.sketch()
            if (
                way == "verify"
                and not problems
                and not (len(text) == counted == stream.num_bytes == sum(map(len, documents)))
            ):
                raise Broken(f"verified, but {len(text)} bytes of text, {counted} counted, {stream.num_bytes} said")
        compressed.find_results(hashlib.sha256(text).hexdigest())

    return read


def lines(rng: Rng) -> bytes:
    """A .jsonl file with something wrong in it."""
    kept: list[Any] = [dict(line) for line in LINES]
    for _ in range(rng.choice((1, 1, 2))):
        kept = change(rng, kept) if rng.random() < 0.7 else kept
        if not isinstance(kept, list):
            kept = [kept]
    end = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n", b"\xe2\x80\xa8"))
    content = end.join(to_json(line, ensure_ascii=rng.random() < 0.5) for line in kept) + (
        end if rng.random() < 0.7 else b""
    )
    content = b"\xef\xbb\xbf" + content if rng.random() < 0.1 else content
    return damage(rng, content) if rng.random() < 0.3 else content


def bomb(rng: Rng) -> bytes:
    """Much of the same. Fewer where each line is a document: to import millions of them takes its time and may."""
    unit = rng.choice((b"\0", b" ", b"a", b"\n", b'{"text": "a"}\n', b'{"text": "', b"\xff", b"[")) * 4096
    size = rng.choice((1, 64, 16_384)) * 4096
    return unit * ((min(size, 4 << 20) if unit.endswith(b"}\n") else size) // len(unit))


def packed(rng: Rng, content: bytes, how: str) -> bytes:
    """Compressed in one or several streams, with or without padding, and perhaps damaged then."""
    window = zstandard.ZstdCompressionParameters.from_level(
        1, window_log=rng.choice((10, 20, 27, 30)), enable_ldm=False
    )
    zstd = zstandard.ZstdCompressor(level=1)
    if rng.random() < 0.3:
        zstd = zstandard.ZstdCompressor(compression_params=window)
    compress: dict[str, Callable[[bytes], bytes]] = {
        "": lambda part: part,
        ".gz": lambda part: gzip.compress(part, 1),
        ".xz": lambda part: lzma.compress(part, preset=0),
        ".zst": zstd.compress,
    }
    parts, at = [], rng.randrange(len(content) + 1)
    for part in (content[:at], content[at:]) if rng.random() < 0.4 else (content,):
        parts.append(compress[how](part))
    joined = rng.choice((b"", b"", bytes(4), bytes(3), bytes(512))).join(parts)
    joined += rng.choice((b"", b"", b"", bytes(4), bytes(1), bytes(1 << 16), b"trailing"))
    return damage(rng, joined) if rng.random() < 0.4 else joined


def parquet(rng: Rng) -> bytes:
    import pyarrow
    from pyarrow import parquet as format

    texts: list[Any] = [line["text"] for line in LINES]
    column = rng.choice(
        (
            lambda: pyarrow.array([*texts, None]),
            lambda: pyarrow.array([text.encode() for text in texts], pyarrow.binary()),
            lambda: pyarrow.array([*(text.encode() for text in texts), b"\xff\xfe"], pyarrow.binary()),
            lambda: pyarrow.array(texts, pyarrow.large_string()),
            lambda: pyarrow.array(texts).dictionary_encode(),
            lambda: pyarrow.array(range(8)),
            lambda: pyarrow.array([texts], pyarrow.list_(pyarrow.string())),
            lambda: pyarrow.nulls(9),
            lambda: pyarrow.array(["x" * (1 << 12)] * rng.choice((1, 60_000))).dictionary_encode(),
            lambda: pyarrow.array(["\x00\x1b[31m", "a\r\nb"]),
            lambda: pyarrow.array([]),
        )
    )()
    file = io.BytesIO()
    names = [rng.choice(("text", "text", "text", "text", "Text", "a\nb\x1b[1m"))]
    format.write_table(pyarrow.table([column], names=names), file, compression=rng.choice(("none", "zstd", "snappy")))
    return damage(rng, file.getvalue()) if rng.random() < 0.6 else file.getvalue()


def make_import(rng: Rng, folder: Path) -> Reader:
    source = folder / "files"
    source.mkdir()
    for _ in range(rng.choice((1, 1, 2))):
        how = rng.choice(("", "", ".gz", ".xz", ".zst"))
        kind = rng.choice((".jsonl", ".jsonl", ".txt", ".md", ".parquet"))
        if kind == ".parquet":
            how, content = "", parquet(rng)
        else:
            content = lines(rng) if kind == ".jsonl" else b"\n".join(line["text"].encode() for line in LINES)
            content = bomb(rng) if rng.random() < 0.04 else content
            content = packed(rng, content, how)
        stem = rng.choice(("a", "a", "a", "b", "c d", "-x", "[red]x[/]", "a\nb", "\x1b[31m", "n" * 200, "\udce9"))
        path = source / f"{stem}{kind}{how}"
        if path.is_fifo():
            continue  # To write into the one before would wait for a reader.
        try:
            path.write_bytes(content)
        except OSError:  # Not every file system takes every name.
            (source / f"a{kind}{how}").write_bytes(content)
        if rng.random() < 0.05 and path.exists():
            misplace(rng, path)
    given = [source] if rng.random() < 0.7 else sorted(source.iterdir())
    old = rng.random() < 0.3
    if old:
        shutil.copytree(GOLDEN / "datasets" / "golden", folder / "datasets" / "golden")
    side = rng.choice(
        (["--split", "train"], ["--heldout-frac", "0.5"], ["--heldout-frac", rng.choice(("0", "1", "nan", "-1"))])
    )
    name = "golden" if old else rng.choice(("new", "new", "new", "new", *TEXTS)).replace("\0", "") or "x"
    words = ["data", "import", name, *map(str, given), *side, *(["--replace"] if old else [])]

    def read() -> None:
        try:
            command(words)
        except Exception:
            left = (
                sorted(path.name for path in (folder / "datasets").glob("*")) if (folder / "datasets").is_dir() else []
            )
            if left != ["golden"] * old:
                raise Broken(f"a failed import leaves {left}") from None
            if old and verify_dataset("golden"):
                raise Broken("a failed import damaged the old dataset") from None
            raise
        if problems := verify_dataset(name):
            raise Broken(f"imported, then damaged: {problems}")

    return read
