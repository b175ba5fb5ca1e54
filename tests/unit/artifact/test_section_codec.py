"""The range coder inside the container: which sections it codes, and what a file may say about it."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import brotli
import numpy as np
import pytest
from numpy.typing import NDArray

from shared.artifact import pack_bytes, unpack_bytes
from shared.artifact.container import MAGIC, PREFIX, VERSION
from shared.artifact.header import canonical_json
from shared.artifact.predict import header_bytes, predict_artifact_bytes, worst_case_bytes
from shared.errors import ArtifactError
from shared.model import random_weights
from shared.spec import load_spec

BROTLI = load_spec("tiny", ["artifact.brotli_quality=5"])
SPEC = load_spec("tiny", ["artifact.brotli_quality=5", "artifact.codec=range"])


def trained_like(seed: int) -> dict[str, NDArray[np.float32]]:
    """Random weights whose columns differ in magnitude by an octave, as trained ones do."""
    rng = np.random.default_rng(seed)
    weights = random_weights(SPEC, seed)
    return {
        name: (value * np.exp2(rng.normal(0, 1, value.shape[-1:]))).astype(np.float32)
        for name, value in weights.items()
    }


GOOD = pack_bytes(SPEC, trained_like(2))


def parsed(content: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, payload)."""
    start = PREFIX.size + PREFIX.unpack(content[: PREFIX.size])[3]
    return json.loads(brotli.decompress(content[PREFIX.size : start])), content[start:]


HEADER, PAYLOAD = parsed(GOOD)


def forged(header: dict[str, Any], payload: bytes = PAYLOAD) -> bytes:
    """A file whose checksums and sizes are right."""
    raw = canonical_json(header).encode()
    stored = brotli.compress(raw)
    return PREFIX.pack(MAGIC, VERSION, len(raw), len(stored), hashlib.sha256(stored).digest()) + stored + payload


def row_of(header: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in header["sections"] if row["name"] == name)


def test_codes_are_range_coded_and_nothing_else_changes() -> None:
    ours, theirs = unpack_bytes(GOOD), unpack_bytes(pack_bytes(BROTLI, trained_like(2)))
    codecs = {row["name"]: row["codec"] for row in HEADER["sections"]}
    assert {codec for name, codec in codecs.items() if name.endswith(".codes")} == {"range"}
    assert {codec for name, codec in codecs.items() if not name.endswith(".codes")} == {"brotli"}
    assert {row["codec"] for row in theirs.header["sections"]} == {"brotli"}
    for name, weights in theirs.weights.items():
        np.testing.assert_array_equal(ours.weights[name], weights)
    for name in ("matrix.codes", "embedding.codes"):
        assert ours.info.section_bytes[name][1] < theirs.info.section_bytes[name][1]


def test_equal_weights_have_equal_bytes() -> None:
    assert pack_bytes(SPEC, trained_like(2)) == GOOD


def test_codes_that_no_weights_have_are_left_to_brotli() -> None:
    """Matrices that are all alike, which only a search for repetitions sees: the writer takes what is shorter."""
    weights = random_weights(SPEC, 3)
    pattern = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    weights = {
        name: np.resize(pattern, value.shape) if value.ndim == 2 and "embed" not in name else value
        for name, value in weights.items()
    }
    header, _ = parsed(pack_bytes(SPEC, weights))
    assert row_of(header, "matrix.codes")["codec"] == "brotli"


def test_any_codes_stay_below_the_worst_case() -> None:
    rng = np.random.default_rng(1)
    for draw in (lambda size: rng.uniform(-1, 1, size), lambda size: rng.choice([-1.0, 1.0], size)):
        weights = {name: draw(value.shape).astype(np.float32) for name, value in random_weights(SPEC, 4).items()}
        assert len(pack_bytes(SPEC, weights)) <= worst_case_bytes(SPEC)


def test_the_range_coder_is_predicted_to_be_smaller() -> None:
    smoke, ranged = (load_spec("smoke", [f"artifact.codec={codec}"]) for codec in ("brotli", "range"))
    brotli_bytes, range_bytes = (predict_artifact_bytes(spec).expected_bytes for spec in (smoke, ranged))
    assert 0.97 < range_bytes / brotli_bytes < 0.99


def test_the_header_is_predicted() -> None:
    sizes = {row["name"]: float(sum(row["stored_bytes"])) for row in HEADER["sections"]}
    assert header_bytes(SPEC, sizes) == pytest.approx(len(GOOD) - len(PAYLOAD), abs=40)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("matrix.codes", {"codec": "zip"}, "section matrix.codes: codec is 'zip', must be brotli or range"),
        ("matrix.codes", {"codec": ["range"]}, "codec is .*, must be brotli or range"),
        ("matrix.codes", {"codec": None}, "codec is None"),
        ("matrix.scales", {"codec": "range"}, "section matrix.scales: codec is 'range', must be brotli"),
        ("raw.values", {"codec": "range"}, "section raw.values: codec is 'range', must be brotli"),
        ("matrix.codes", {"codec": "brotli"}, "section matrix.codes: brotli stream"),
        ("matrix.codes", {"stored_bytes": [5, 5]}, "has 2 blocks, its size implies 1"),
    ],
)
def test_a_lying_row_is_one_clear_line(name: str, change: dict[str, Any], match: str) -> None:
    header = copy.deepcopy(HEADER)
    row_of(header, name).update(change)
    with pytest.raises(ArtifactError, match=match):
        unpack_bytes(forged(header))


def test_a_row_without_a_codec_is_refused() -> None:
    header = copy.deepcopy(HEADER)
    del row_of(header, "matrix.codes")["codec"]
    with pytest.raises(ArtifactError, match=r"section matrix\.codes: keys are"):
        unpack_bytes(forged(header))


@pytest.mark.parametrize("kept", [0, 3, 200, -2])
def test_a_short_range_coded_section_is_refused(kept: int) -> None:
    """Its checksum and size are right, so the coder itself has to see it."""
    header = copy.deepcopy(HEADER)
    row = header["sections"][0]
    assert row["name"] == "matrix.codes"
    (size,) = row["stored_bytes"]
    stored = PAYLOAD[:size][: kept or 1]
    row["stored_bytes"], row["sha256"] = [len(stored)], hashlib.sha256(stored).hexdigest()
    with pytest.raises(ArtifactError, match=r"section matrix\.codes: range coded section"):
        unpack_bytes(forged(header, stored + PAYLOAD[size:]))
