"""Checkpoints: whole or absent, the last ones and the best are kept, a full disk harms nothing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from shared import files
from shared.errors import RunError
from shared.runs import checkpoints
from shared.runs.checkpoints import CheckpointInfo, CheckpointStore
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
    # The limit holds for bytecode too, and Python would leave it cut short for whoever imports it next.
    words = [sys.executable, "-B", "-c", program, str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit_file_size)
    assert done.returncode == 0, done.stderr
    assert "cannot write checkpoint" in done.stdout and "file too large" in done.stdout
    assert names(tmp_path) == before
