"""Artifacts: damaged as they are, and lies under checksums that are right."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import brotli
import numpy as np

from shared.artifact import pack_bytes, read_artifact
from shared.artifact.calibration import needs_statistics
from shared.artifact.container import MAGIC, PREFIX, READABLE_VERSIONS
from shared.artifact.header import canonical_json
from shared.model import random_weights
from shared.quantisers import Curvature, InputStatistics
from shared.runs.target import load_trained
from shared.spec import load_spec, with_overrides
from tests.fuzz.mutate import Rng, change, damage, hostile, to_json
from tests.fuzz.worker import GOLDEN, Broken, Reader, command

# How artifacts of today are packed that are damaged here: every method, rounding and correction, both codecs.
SETTINGS: tuple[list[str], ...] = (
    [],
    ["matrix={method='uniform',step=0.3}", "embed={method='uniform',step=0.1}"],
    ["matrix={method='uniform',rounding='gptq',step=0.2,trellis=8}", "embed={method='uniform',trellis=4}"],
    ["matrix={method='uniform',rounding='two_sided',step=0.2}", "logits=temperature_bias"],
    ["matrix={method='sd_clip',bits=6,lqer_rank=2}", "lqer_tensors=2"],
    ["matrix={method='ternary',group=16}", "tensors=[{pattern='*down*',method='clip_search',bits=4}]"],
)


@cache
def contents() -> list[bytes]:
    """Artifacts of earlier versions, and of this one: models of all golden files, and one large enough for the range
    coder to be worth it."""
    old = [read_artifact(path) for path in sorted(GOLDEN.rglob("*.btw"))]
    models = [(artifact.spec, artifact.weights) for artifact in old]
    large = load_spec("tiny", ["data.train=golden", "data.heldout=golden"])
    models.append((large, random_weights(large, 1)))
    found = [path.read_bytes() for path in sorted(GOLDEN.rglob("*.btw"))]
    for index, settings in enumerate(SETTINGS * 3):
        spec, weights = models[index % len(models)] if index < len(models) - 1 else models[-1]
        codec = "range" if (index + index // len(SETTINGS)) % 3 else "brotli"
        spec = with_overrides(spec, [f"artifact.{setting}" for setting in ["matrix={}", f"codec={codec}", *settings]])
        statistics = {
            name: InputStatistics(9, np.eye(value.shape[-1]), curvature=Curvature(*map(np.eye, value.shape[::-1])))
            for name, value in weights.items()
            if value.ndim == 2 and needs_statistics(spec)
        }
        found.append(pack_bytes(spec, weights, None, statistics))
    return found


@cache
def parts(content: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(header, unpacked sections)."""
    at = PREFIX.size + PREFIX.unpack(content[: PREFIX.size])[3]
    header, sections = json.loads(brotli.decompress(content[PREFIX.size : at])), {}
    for row in header["sections"]:
        (size,) = row["stored_bytes"]
        stored = content[at : at + size]
        sections[row["name"]] = stored if is_range_coded(row) else brotli.decompress(stored)
        at += size
    return header, sections


def is_range_coded(row: dict[str, Any]) -> bool:
    return row.get("codec") == "range"


def forge(version: int, header: bytes, payload: bytes) -> bytes:
    """A file with this header, its checksum and sizes right."""
    stored = brotli.compress(header, quality=1)
    return PREFIX.pack(MAGIC, version, len(header), len(stored), hashlib.sha256(stored).digest()) + stored + payload


def forged(rng: Rng, content: bytes) -> bytes:
    header, sections = parts(content)
    version = version_of(content)
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


def version_of(content: bytes) -> int:
    return int(PREFIX.unpack(content[: PREFIX.size])[1])


def make(rng: Rng, folder: Path) -> Reader:
    return make_from(contents(), rng, folder)


def make_from(wholes: list[bytes], rng: Rng, folder: Path) -> Reader:
    whole, input_path = rng.choice(wholes), folder / "input.btw"
    signed = rng.random() < 0.75
    content = forged(rng, whole) if signed else damage(rng, whole)
    input_path.write_bytes(content)
    score = rng.random() < 0.5
    seed = hostile(rng, 1) if rng.random() < 0.1 else 1

    def read() -> None:
        target = load_trained(str(input_path))
        if not signed and content != whole:
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
