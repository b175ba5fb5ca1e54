"""Damaged checkpoints: every damage is found, and the checkpoint before is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import RunError
from shared.runs.checkpoints import CheckpointStore, signed
from tests import ROOT
from tests.unit.runs.test_checkpoints import make_info, make_state, make_store


@pytest.mark.slow
@settings(max_examples=60)
@given(
    suffix=st.sampled_from([".json", ".safetensors"]),
    position=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_is_found_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, position: float, bit: int
) -> None:
    """A flip falls back, or is in the white space of the JSON, and says no more than before."""
    folder = tmp_path_factory.mktemp("checkpoints")
    store = make_store(folder, 3, 4)
    path = folder / f"step-00000004{suffix}"
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(content)
    checkpoint = store.load_latest()
    assert checkpoint is not None
    if suffix == ".safetensors":
        assert checkpoint.info.step == 3
    told = replace(checkpoint.info, state_bytes=0, state_sha256="")
    assert told == make_info(told.step) and len(checkpoint.warnings) == 4 - told.step
    assert checkpoint.state["weight/a"].tobytes() == make_state(checkpoint.info.step)["weight/a"].tobytes()
    shutil.rmtree(folder)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_set_aside(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3, 4, 5)
    os.truncate(tmp_path / "step-00000005.safetensors", 40)
    (tmp_path / "step-00000004.safetensors").unlink()
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.info.step == 3
    assert len(checkpoint.warnings) == 2
    assert "step-00000005.safetensors is damaged (40 bytes instead of" in checkpoint.warnings[0]
    assert "is missing" in checkpoint.warnings[1]
    assert store.steps() == [3, 4, 5], "loading changes nothing"
    store.set_aside_after(3)
    assert store.steps() == [3]
    assert (tmp_path / "step-00000005.safetensors.damaged").exists()


def resigned(**changes: Any) -> Callable[[Path], object]:
    """Change values of a checkpoint's JSON, and its checksum with them, as no accident does."""

    def change(path: Path) -> None:
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps(signed(values)))

    return change


def in_place(make: Callable[[Path], object], suffix: str = ".json") -> Callable[[Path], object]:
    """Something else in the place of a file."""

    def change(path: Path) -> None:
        path.with_suffix(suffix).unlink()
        make(path.with_suffix(suffix))

    return change


def odd_dtype(path: Path) -> None:
    """Tensors of a dtype that the format has and NumPy lacks."""
    content = path.with_suffix(".safetensors").read_bytes().replace(b'"F32"', b'"U32"', 1)
    path.with_suffix(".safetensors").write_bytes(content)
    resigned(state_sha256=hashlib.sha256(content).hexdigest())(path)


def other_weight(path: Path) -> None:
    """Another value in the place of the last weight, which any file of tensors may hold."""
    content = path.with_suffix(".safetensors").read_bytes()
    path.with_suffix(".safetensors").write_bytes(content[:-4] + b"\0\0\x80\x3e")


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nested": (lambda path: path.write_text("[" * 200_000), "nested too deeply"),
    "digits": (lambda path: path.write_text(f'{{"step": {"9" * 5000}}}'), "integer of 5000 digits"),
    "infinite": (lambda path: path.write_text('{"step": 1e999}'), "not finite"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe{}"), "not UTF-8"),
    "list": (lambda path: path.write_text("[]"), "not a JSON object"),
    "version": (resigned(format_version=3), "not of format 1 or 2"),
    "unsigned": (lambda path: path.write_text(path.read_text().replace("json_sha256", "json_sha257")), "SHA-256"),
    "value": (lambda path: path.write_text(path.read_text().replace("4.1", "4.2")), "SHA-256 of its JSON file"),
    "loader": (resigned(loader=None), "loader: must be"),
    "clock": (resigned(elapsed_s="4"), "elapsed_s: must be"),
    "validation": (resigned(last_validation={"step": 4}), "last_validation.bpb"),
    "unknown": (resigned(more=1), "more: unexpected"),
    "step": (resigned(step=3), "it says step 3"),
    "folder": (in_place(Path.mkdir), "is a directory"),
    "loop": (in_place(lambda path: path.symlink_to(path)), "too many levels of symbolic links"),
    "pipe": (in_place(os.mkfifo), "not a regular file"),
    "tensor folder": (in_place(Path.mkdir, ".safetensors"), "is a directory"),
    "tensor pipe": (in_place(os.mkfifo, ".safetensors"), "not a regular file"),
    "weight": (other_weight, "its SHA-256 differs from the recorded one"),
    "dtype": (odd_dtype, "of finite float32 numbers"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_whatever_lies_in_place_of_a_checkpoint_the_one_before_is_used(tmp_path: Path, name: str) -> None:
    """And training goes on: it tidies, sets aside, and writes the same steps again."""
    store = make_store(tmp_path, 3, 4)
    change, reason = NO_CHECKPOINTS[name]
    change(tmp_path / "step-00000004.json")
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.info.step == 3
    (warning,) = checkpoint.warnings
    assert reason in warning and len(warning) < 400 and "\n" not in warning
    with pytest.raises(RunError, match=r"step-00000004.safetensors is damaged"):
        store.load_step(4)
    store.tidy()
    store.set_aside_after(3)
    assert store.steps() == [3]
    for step in (4, 5, 6, 7):
        store.save(make_info(step), make_state(step))
    assert store.steps() == [5, 6, 7] and store.load_step(6).info.step == 6


def test_a_damaged_one_is_neither_kept_nor_taken_for_the_best(tmp_path: Path) -> None:
    store = make_store(tmp_path, keep=2)
    for step, bpb in ((1, 1.2), (2, 1.1)):
        store.save(make_info(step, step, bpb), make_state(step))
    path = tmp_path / "step-00000002.json"
    path.write_text(path.read_text().replace("1.1", "0.1"))
    best = store.load_best()
    assert best is not None and best.info.step == 1
    assert len(best.warnings) == 1, "nobody knows whether the damaged one was the best"
    for step in (3, 4):
        store.save(make_info(step, step, 1.3), make_state(step))
    assert store.steps() == [1, 3, 4]
    with pytest.raises(RunError, match="no checkpoint of step 2; steps: 1, 3, 4"):
        store.load_step(2)


def test_a_checkpoint_of_before_the_checksum_is_read_and_looked_through(tmp_path: Path) -> None:
    """Its spec must be one, as nothing else tells whether it is damaged."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(ROOT / "tests/golden/2026-11-26/bytes/checkpoints", folder)
    store, path = CheckpointStore(folder, 2), folder / "step-00000004.json"
    newest = store.load_latest()
    assert newest is not None and newest.info.format_version == 1 and newest.warnings == []
    content = path.read_text()
    for before, after in (('"num_layers": ', '"num_layerz": '), ('"model_dim": 4', '"model_dim": 5'), (": 2", ": -2")):
        path.write_text(content.replace(before, after, 1))
        found = store.load_latest()
        assert found is not None and (len(found.warnings), found.info.step) == (1, 2), before


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    os.truncate(tmp_path / "step-00000003.safetensors", 40)
    with pytest.raises(RunError, match=r"no usable checkpoint: .*step-00000003.safetensors is damaged"):
        store.load_latest()
