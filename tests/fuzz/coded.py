"""Coded files: damaged as they are, and lies under a checksum that is right."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from shared.coding.codec import Codec
from shared.coding.container import CHECK_BYTES, MAGIC, NAME_BYTES, SUM_BYTES, checksum, varint
from shared.coding.text import symbols_of
from shared.runs.target import Target, load_trained
from tests.fuzz.mutate import NUMBERS, Rng, damage
from tests.fuzz.worker import GOLDEN, Broken, Reader, command

MODELS = ("bytes", "patches", "tokens")
START = len(MAGIC) + 1
TEXTS = (b"", b"a", b"The whole text, \xe2\x82\xac and all.\n" * 2)


@cache
def model(name: str) -> Target:
    return load_trained(str(GOLDEN / name / "artifact.btw"))


@cache
def coded(name: str, text: bytes) -> bytes:
    """The file of a text."""
    target = model(name)
    assert target.artifact_sha256 is not None
    codec = Codec(target.spec, target.weights, target.artifact_sha256, "numpy")
    return codec.compress(symbols_of(target.spec.vocabulary, text, "text"))[0]


def forged(rng: Rng, content: bytes) -> bytes:
    """A file of which some part lies, with the checksum that belongs to it."""
    rest = content[START + SUM_BYTES :]
    fixed, head, payload = rest[: NAME_BYTES + CHECK_BYTES], rest[NAME_BYTES + CHECK_BYTES :][:2], rest[16:]
    match rng.randrange(4):
        case 0:
            head = b"".join(varint(abs(rng.choice((1, 3, *NUMBERS)))) for _ in range(2))
        case 1:
            head = damage(rng, head)
        case 2:
            payload = damage(rng, payload)
        case 3:
            fixed = damage(rng, fixed)
    start = content[:START] if rng.random() < 0.9 else damage(rng, content[:START])
    return start + checksum(start + fixed + head + payload) + fixed + head + payload


def make(rng: Rng, folder: Path) -> Reader:
    name, text = rng.choice(MODELS), rng.choice(TEXTS)
    whole, path, output = coded(name, text), folder / "a.btz", folder / "out"
    content = forged(rng, whole) if rng.random() < 0.7 else damage(rng, whole)
    path.write_bytes(content)
    words = ["decompress", str(path), "--model", str(GOLDEN / name / "artifact.btw"), "--engine", "numpy"]

    def read() -> None:
        try:
            command([*words, "--output", str(output)])
        finally:
            left = sorted(entry.name for entry in folder.iterdir())
            if left not in (["a.btz"], ["a.btz", "out"]):
                raise Broken(f"files left: {left}")
        if output.read_bytes() != text or content != whole:
            raise Broken("a damaged file was read")

    return read
