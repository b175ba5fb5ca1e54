"""Checkpoints: whole or absent, damage is found, a full disk harms nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from shared import files
from shared.errors import RunError
from shared.runs import checkpoints
from shared.runs.checkpoints import CheckpointInfo, CheckpointStore, signed
from shared.runs.observer import ValidationReport
from tests import ROOT


def make_validation(step: int, bpb: float) -> ValidationReport:
    return ValidationReport(step, bpb, None, None, nats=1.0, symbols=1, bytes=1, documents=1, weights="trained")


def make_info(step: int, validated_at: int = 0, bpb: float = 2.0) -> CheckpointInfo:
    return CheckpointInfo(
        step=step,
        elapsed_s=0.1 + step,
        engine="fake",
        spec_id="0" * 16,
        spec={"name": "x"},
        loader={"step": step},
        last_validation=make_validation(validated_at, bpb) if validated_at else None,
    )


def make_state(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {"weight/a": rng.standard_normal((3, 5)).astype(np.float32), "momentum/a": np.full(2, step, np.float32)}


def make_store(folder: Path, *steps: int, keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(folder, keep)
    store.tidy()
    for step in steps:
        store.save(make_info(step), make_state(step))
    return store


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def names(folder: Path) -> list[str]:
    return list(contents(folder))


def test_what_is_loaded_is_bit_for_bit_what_was_saved(tmp_path: Path) -> None:
    checkpoint = make_store(tmp_path, 7).load_latest()
    assert checkpoint is not None and checkpoint.warnings == []
    assert checkpoint.info.step == 7 and checkpoint.info.elapsed_s == 7.1 and checkpoint.info.loader == {"step": 7}
    assert checkpoint.state.keys() == make_state(7).keys()
    for name, value in make_state(7).items():
        assert checkpoint.state[name].dtype == np.float32
        assert checkpoint.state[name].tobytes() == value.tobytes()


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = make_store(tmp_path, 1, 2, 10, 9, keep=2)
    assert store.steps() == [9, 10]
    assert names(tmp_path) == [f"step-{step:08d}.{ending}" for step in (9, 10) for ending in ("json", "safetensors")]


def test_the_best_one_is_kept_beside_the_last_ones(tmp_path: Path) -> None:
    """Steps 2 and 5 have the lowest score, but step 5 was validated at step 4: it is of other weights."""
    store = make_store(tmp_path, keep=2)
    scores = {1: 2.0, 2: 1.5, 3: 1.7, 4: 1.6, 6: 1.9, 7: 1.8}
    for step in range(1, 9):
        validated_at = max((other for other in scores if other <= step), default=0)
        store.save(make_info(step, validated_at, scores[validated_at]), make_state(step))
    assert store.steps() == [2, 7, 8]
    best, latest = store.load_best(), store.load_latest()
    assert best is not None and best.info.step == 2 and best.warnings == []
    assert best.path == tmp_path / "step-00000002.safetensors"
    assert latest is not None and latest.info.step == 8
    store.save(make_info(9, 9, 1.5), make_state(9))
    assert store.steps() == [8, 9], "of equal ones the newest"


def test_without_validations_there_is_no_best(tmp_path: Path) -> None:
    store = make_store(tmp_path, 1, 2)
    assert store.load_best() is None


def test_a_damaged_best_one_gives_way_to_the_next_best(tmp_path: Path) -> None:
    store = make_store(tmp_path, keep=3)
    for step, bpb in ((1, 1.2), (2, 1.1), (3, 1.3)):
        store.save(make_info(step, step, bpb), make_state(step))
    os.truncate(tmp_path / "step-00000002.safetensors", 40)
    best = store.load_best()
    assert best is not None and best.info.step == 1
    assert len(best.warnings) == 1 and "step-00000002.safetensors is damaged" in best.warnings[0]
    for step in (1, 3):
        (tmp_path / f"step-{step:08d}.safetensors").unlink()
    with pytest.raises(RunError, match="no usable checkpoint"):
        store.load_best()


@pytest.mark.slow
@settings(max_examples=40)
@given(
    keep=st.integers(1, 3),
    scores=st.lists(st.none() | st.sampled_from([1.0, 1.1, 1.2, 1.3]), min_size=1, max_size=9),
)
def test_kept_are_the_last_ones_and_the_best_of_what_was_there(
    tmp_path_factory: pytest.TempPathFactory, keep: int, scores: list[float | None]
) -> None:
    """The best so far is never dropped, so it is the best of all that were ever written."""
    folder = tmp_path_factory.mktemp("checkpoints")
    store = make_store(folder, keep=keep)
    for step, bpb in enumerate(scores, start=1):
        store.save(make_info(step, step if bpb else 0, bpb or 9.0), {"weight/a": np.zeros(1, np.float32)})
    steps = list(range(1, len(scores) + 1))
    scored = {step: bpb for step, bpb in zip(steps, scores, strict=True) if bpb is not None}
    best = [max(step for step, bpb in scored.items() if bpb == min(scored.values()))] if scored else []
    assert store.steps() == sorted({*steps[-keep:], *best})
    shutil.rmtree(folder)


def test_arrays_that_are_not_contiguous_are_saved_as_they_look(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    store = make_store(tmp_path)
    store.save(make_info(1), {"weight/a": values.T, "weight/b": values[:, ::2]})
    checkpoint = store.load_latest()
    assert checkpoint is not None
    assert np.array_equal(checkpoint.state["weight/a"], values.T)
    assert np.array_equal(checkpoint.state["weight/b"], values[:, ::2])


def test_the_files_can_be_read_by_whoever_can_read_the_folder(tmp_path: Path) -> None:
    for mode in (0o755, 0o700):
        folder = tmp_path / oct(mode)
        folder.mkdir()
        folder.chmod(mode)
        make_store(folder, 1)
        assert (folder / "step-00000001.safetensors").stat().st_mode & 0o777 == mode & 0o666


def test_a_folder_without_checkpoints_gives_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "missing", 2).load_latest() is None


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


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nested": (lambda path: path.write_text("[" * 200_000), "nested too deeply"),
    "digits": (lambda path: path.write_text(f'{{"step": {"9" * 5000}}}'), "integer of 5000 digits"),
    "infinite": (lambda path: path.write_text('{"step": 1e999}'), "not finite"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe{}"), "not UTF-8"),
    "list": (lambda path: path.write_text("[]"), "not a JSON object"),
    "version": (resigned(format_version=3), "not of format 1 or 2"),
    "unsigned": (lambda path: path.write_text(path.read_text().replace("json_sha256", "json_sha257")), "SHA-256"),
    "value": (lambda path: path.write_text(path.read_text().replace("4.1", "4.2")), "SHA-256 of its JSON file"),
    "loader": (resigned(loader=None), "loader: input should be"),
    "clock": (resigned(elapsed_s="4"), "elapsed_s: input should be"),
    "validation": (resigned(last_validation={"step": 4}), "last_validation.bpb"),
    "unknown": (resigned(more=1), "more: unexpected"),
    "step": (resigned(step=3), "it says step 3"),
    "folder": (in_place(Path.mkdir), "is a directory"),
    "loop": (in_place(lambda path: path.symlink_to(path)), "too many levels of symbolic links"),
    "pipe": (in_place(os.mkfifo), "not a regular file"),
    "tensor folder": (in_place(Path.mkdir, ".safetensors"), "is a directory"),
    "tensor pipe": (in_place(os.mkfifo, ".safetensors"), "not a regular file"),
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


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    (tmp_path / ".step-00000004.safetensors.123.tmp").write_bytes(b"half")
    (tmp_path / ".tmpAb3dEf").write_bytes(b"half of what the library writes")
    (tmp_path / "step-00000004.safetensors").write_bytes(b"without its JSON")
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.info.step == 3 and checkpoint.warnings == []
    store.tidy()
    assert names(tmp_path) == ["step-00000003.json", "step-00000003.safetensors"]


def fill_disk_at(failing_call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when a file is flushed for the n-th time."""
    calls = 0
    real_fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal calls
        # Folders are flushed too; only files count here.
        calls += stat.S_ISREG(os.fstat(descriptor).st_mode)
        if calls == failing_call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_full_disk_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int) -> None:
    """The disk fills up while the tensors (1) or the JSON (2) are flushed."""
    store = make_store(tmp_path, 3)
    before = contents(tmp_path)
    fill_disk_at(failing_call, monkeypatch)
    with pytest.raises(RunError) as caught:
        store.save(make_info(4), make_state(4))
    message = str(caught.value)
    assert "step-00000004.safetensors: no space left on device" in message and "\n" not in message
    assert f"the last good checkpoint is {tmp_path / 'step-00000003.safetensors'}" in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("failing_call", "same_state"), [(1, True), (2, True), (1, False)])
def test_a_full_disk_while_a_checkpoint_is_written_again_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int, same_state: bool
) -> None:
    """A run that was stopped in a validation writes the same step once more, with the score."""
    store = make_store(tmp_path, 4, keep=1)
    fill_disk_at(failing_call, monkeypatch)
    with pytest.raises(RunError, match="no space left on device"):
        store.save(make_info(4, 4), make_state(4 if same_state else 5))
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.warnings == [] and checkpoint.info.last_validation is None
    assert checkpoint.state["weight/a"].tobytes() == make_state(4)["weight/a"].tobytes()


def test_a_disk_that_fills_up_while_the_tensors_are_written_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the library raises then is no OSError; its message carries the number of one."""

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    store = make_store(tmp_path, 3)
    before = names(tmp_path)
    monkeypatch.setattr(checkpoints, "write_tensors", full)
    with pytest.raises(RunError, match=r"step-00000004.safetensors: no space left on device; the last good"):
        store.save(make_info(4), make_state(4))
    assert names(tmp_path) == before


def test_a_write_that_the_system_cuts_short_harms_nothing(tmp_path: Path) -> None:
    """A real partial write: the kernel refuses bytes beyond a limit."""

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    make_store(tmp_path, 3)
    before = names(tmp_path)
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from shared.errors import RunError\n"
        "from tests.unit.runs.test_checkpoints import CheckpointStore, make_info\n"
        "try:\n"
        "    CheckpointStore(Path(sys.argv[1]), 3).save(make_info(4), {'weight/a': np.zeros(9999, np.float32)})\n"
        "except RunError as error:\n"
        "    print(error)\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit_file_size)
    assert done.returncode == 0, done.stderr
    assert "cannot write checkpoint" in done.stdout and "file too large" in done.stdout
    assert names(tmp_path) == before
