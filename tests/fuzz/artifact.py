"""Artifacts: damaged as they are, and lies under checksums that are right."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import brotli

from shared.artifact.container import MAGIC, PREFIX, READABLE_VERSIONS
from shared.artifact.header import canonical_json
from shared.runs.target import load_trained
from tests.fuzz.mutate import Rng, change, damage, hostile, to_json
from tests.fuzz.worker import GOLDEN, Broken, Reader, command

PATHS = sorted(GOLDEN.rglob("*.btw"))


@cache
def parts(path: Path) -> tuple[bytes, dict[str, Any], dict[str, bytes]]:
    """(whole file, header, unpacked sections)."""
    content = path.read_bytes()
    at = PREFIX.size + PREFIX.unpack(content[: PREFIX.size])[3]
    header, sections = json.loads(brotli.decompress(content[PREFIX.size : at])), {}
    for row in header["sections"]:
        (size,) = row["stored_bytes"]
        stored = content[at : at + size]
        sections[row["name"]] = stored if is_range_coded(row) else brotli.decompress(stored)
        at += size
    return content, header, sections


def is_range_coded(row: dict[str, Any]) -> bool:
    return row.get("codec") == "range"


def forge(version: int, header: bytes, payload: bytes) -> bytes:
    """A file with this header, its checksum and sizes right."""
    stored = brotli.compress(header, quality=1)
    return PREFIX.pack(MAGIC, version, len(header), len(stored), hashlib.sha256(stored).digest()) + stored + payload


def forged(rng: Rng, path: Path) -> bytes:
    content, header, sections = parts(path)
    version = PREFIX.unpack(content[: PREFIX.size])[1]
    how = rng.random()
    if how < 0.35:
        sections = dict(sections)
        name = rng.choice(list(sections))
        sections[name] = damage(rng, sections[name])
    payload, rows = b"", []
    for row, raw in zip(header["sections"], sections.values(), strict=True):
        stored = raw if is_range_coded(row) else brotli.compress(raw, quality=1)
        payload += stored
        rows.append({**row, "stored_bytes": [len(stored)], "sha256": hashlib.sha256(stored).hexdigest()})
    header = {**header, "sections": rows}
    if how > 0.3:
        part = rng.choice(("spec", "spec", "tensors", "sections", "extra", None))
        if part == "extra" and rng.random() < 0.7:
            header["extra"] = change(rng, {"chosen": {"step": 3, "bpb": 2.5, "dataset": "golden"}})
        else:
            header = {**header, part: change(rng, header[part])} if part else change(rng, header)
    try:
        text = canonical_json(header).encode() if rng.random() < 0.8 else b""
    except ValueError:
        text = b""
    text = text or to_json(header, sort_keys=True, separators=(",", ":"))
    version = rng.choice(READABLE_VERSIONS) if rng.random() < 0.1 else version
    return forge(version, damage(rng, text) if rng.random() < 0.1 else text, hostile_payload(rng, payload))


def hostile_payload(rng: Rng, payload: bytes) -> bytes:
    return damage(rng, payload) if rng.random() < 0.05 else payload


def make(rng: Rng, folder: Path) -> Reader:
    path, input_path = rng.choice(PATHS), folder / "input.btw"
    signed = rng.random() < 0.75
    content = forged(rng, path) if signed else damage(rng, path.read_bytes())
    input_path.write_bytes(content)
    score = rng.random() < 0.5
    seed = hostile(rng, 1) if rng.random() < 0.1 else 1

    def read() -> None:
        target = load_trained(str(input_path))
        if not signed and content != path.read_bytes():
            raise Broken("a damaged file was read")
        data = target.spec.data.heldout
        if not data.isprintable() or not data.isascii():
            raise Broken(f"the name of a dataset: {data!r}")
        words = ["--engine", "numpy", str(input_path)]
        if score:
            data = "golden-tokens" if target.spec.vocabulary.reads_tokens else "golden"
            command(["score", *words, "--max-symbols", "64", "--data", data])
        else:
            command(["generate", *words, "--bytes", "2", "--seed", str(seed)])

    return read
