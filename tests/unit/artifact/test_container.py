"""The `.btw` file: round trips, identical bytes, atomic writing, what the writer refuses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.artifact import dequantise, pack_bytes, quantise_model, read_artifact, unpack_bytes, write_artifact
from shared.artifact.codec import BLOCK_BYTES
from shared.errors import ArtifactError
from shared.model import random_weights
from shared.model.manifest import parameter_manifest
from shared.spec import load_spec, spec_id
from tests.datasets import full_disk
from tests.processes import run_python

FAST = ["artifact.brotli_quality=1"]
TINY = load_spec("tiny", FAST)


def _assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype and left[name].shape == right[name].shape
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("tiny", []),
        ("tiny", ["model.patch_size=1", "model.decoder.kind=linear", "model.tie_embeddings=false"]),
        ("tiny", ["model.decoder.kind=mlp", "model.tie_embeddings=false", "artifact.head.bits=6"]),
        ("tiny", ["artifact.matrix.bits=8", "artifact.embed.bits=6", "model.resid_mix=false"]),
        ("smoke", [*FAST, "model.model_dim=256", "model.ngram.rows=0", "artifact.matrix={}", "artifact.codec=brotli"]),
    ],
)
def test_what_is_read_is_what_quantisation_made(tmp_path: Path, preset: str, overrides: list[str]):
    spec = load_spec(preset, overrides)
    weights = random_weights(spec, 3)
    path = tmp_path / "model.btw"
    info = write_artifact(path, spec, weights, {"step": 60})
    artifact = read_artifact(path)
    _assert_same(artifact.weights, dequantise(quantise_model(spec, weights)))
    assert artifact.spec == spec and artifact.header["extra"] == {"step": 60}
    assert artifact.info == info
    assert info.artifact_bytes == path.stat().st_size == len(pack_bytes(spec, weights, {"step": 60}))
    assert info.parameters == sum(weight.size for weight in weights.values())
    assert info.spec_id == spec_id(spec)
    stored = sum(stored for _, stored in info.section_bytes.values())
    assert info.header_bytes + stored == info.artifact_bytes
    blocks = {row["name"]: (len(row["stored_bytes"]), row["raw_bytes"]) for row in artifact.header["sections"]}
    assert all(count == -(-raw_bytes // BLOCK_BYTES) for count, raw_bytes in blocks.values())
    assert preset == "tiny" or blocks["matrix.codes"][0] > 2


def test_packing_what_was_unpacked_keeps_every_code():
    artifact = unpack_bytes(pack_bytes(TINY, random_weights(TINY, 1)))
    again = unpack_bytes(pack_bytes(TINY, artifact.weights))
    for name, tensor in artifact.tensors.items():
        first = next(iter(tensor.parts))  # codes or values
        assert again.tensors[name].parts[first].tobytes() == tensor.parts[first].tobytes(), name


@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-140, 18))
@settings(max_examples=25)
def test_any_finite_weights_survive(seed: int, exponent: int):
    rng = np.random.default_rng(seed)
    weights = {}
    for parameter in parameter_manifest(TINY):
        values = np.ldexp(rng.standard_normal(parameter.shape).astype(np.float32), exponent)
        weights[parameter.name] = values * (rng.random(parameter.shape[:1] + (1,) * (values.ndim - 1)) < 0.7)
        weights[parameter.name] = weights[parameter.name].astype(np.float32)
    content = pack_bytes(TINY, weights)
    assert content == pack_bytes(TINY, weights)
    again = dequantise(quantise_model(TINY, weights))
    _assert_same(unpack_bytes(content).weights, again)


def test_equal_weights_give_equal_bytes_whatever_their_order_in_memory():
    weights = random_weights(TINY, 5)
    shuffled = {name: np.asfortranarray(weights[name].copy()) for name in sorted(weights, reverse=True)}
    assert pack_bytes(TINY, weights, {"a": 1, "b": [2]}) == pack_bytes(TINY, shuffled, {"b": (2,), "a": 1})
    changed = {**weights, "embed.start": weights["embed.start"] + np.float32(1)}
    assert pack_bytes(TINY, changed) != pack_bytes(TINY, weights)


def test_another_process_gives_the_same_bytes():
    program = (
        "import hashlib\nfrom shared.artifact import pack_bytes\nfrom shared.model import random_weights\n"
        "from shared.spec import load_spec\nspec = load_spec('tiny', ['artifact.brotli_quality=1'])\n"
        "print(hashlib.sha256(pack_bytes(spec, random_weights(spec, 9))).hexdigest())"
    )
    printed = run_python(program, PYTHONHASHSEED="77", TZ="Asia/Tokyo")
    assert printed.strip() == unpack_bytes(pack_bytes(TINY, random_weights(TINY, 9))).info.sha256


def test_the_writer_refuses_what_is_not_the_model():
    weights = random_weights(TINY, 0)
    without = {name: value for name, value in weights.items() if name != "embed.start"}
    with pytest.raises(ArtifactError, match=r"tensor embed\.start: missing"):
        pack_bytes(TINY, without)
    with pytest.raises(ArtifactError, match="tensor spy: not a parameter of the spec"):
        pack_bytes(TINY, {**weights, "spy": weights["embed.start"]})
    with pytest.raises(ArtifactError, match=r"tensor embed\.start: shape \(31,\), the spec implies \(32,\)"):
        pack_bytes(TINY, {**weights, "embed.start": weights["embed.start"][:31]})
    nan = np.full_like(weights["embed.start"], np.nan)
    with pytest.raises(ArtifactError, match=r"tensor embed\.start: 32 of 32 weights are not finite"):
        pack_bytes(TINY, {**weights, "embed.start": nan})


@pytest.mark.parametrize("extra", [{"x": float("nan")}, {"x": object()}, {"x": b"bytes"}, {"x": 10**30}])
def test_the_writer_refuses_extra_values_that_no_reader_takes(extra: dict[str, object]):
    with pytest.raises(ArtifactError, match="JSON"):
        pack_bytes(TINY, random_weights(TINY, 0), extra)


def test_the_writer_refuses_a_header_over_its_limit():
    with pytest.raises(ArtifactError, match=r"header of \d+ bytes, at most 1048576 are allowed"):
        pack_bytes(TINY, random_weights(TINY, 0), {"x": "y" * (1 << 20)})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "model.btw"
    path.write_bytes(b"old")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ArtifactError, match=r"model\.btw: cannot write the artifact \(No space left on device\)"):
        write_artifact(path, TINY, random_weights(TINY, 0))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.btw"]


def test_paths_that_cannot_be_used_are_one_line(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"none\.btw: cannot read the artifact \(No such file"):
        read_artifact(tmp_path / "none.btw")
    with pytest.raises(ArtifactError, match="not a file"):
        read_artifact(tmp_path)
    with pytest.raises(ArtifactError, match=r"cannot write the artifact \(No such file"):
        write_artifact(tmp_path / "no" / "model.btw", TINY, random_weights(TINY, 0))
