"""Checkpoints: whole or absent, damage is found, a full disk harms nothing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import files
from shared.errors import RunError
from shared.training.checkpoints import CheckpointInfo, CheckpointStore

ROOT = Path(__file__).resolve().parents[2]


def make_info(step: int) -> CheckpointInfo:
    return CheckpointInfo(
        step=step, elapsed_s=0.1 + step, engine="fake", spec_id="0" * 16, spec={"name": "x"}, loader={"step": step}
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
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000009.json",
        "step-00000009.safetensors",
        "step-00000010.json",
        "step-00000010.safetensors",
    ]


def test_a_folder_without_checkpoints_gives_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "missing", 2).load_latest() is None


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from([".json", ".safetensors"]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7)
)
def test_any_flipped_bit_is_found_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, place: float, bit: int
) -> None:
    """A flip in the tensors always falls back. One in the JSON does too, or changes a recorded fact only."""
    folder = tmp_path_factory.mktemp("checkpoints")
    store = make_store(folder, 3, 4)
    path = folder / f"step-00000004{suffix}"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    checkpoint = store.load_latest()
    assert checkpoint is not None
    if suffix == ".safetensors":
        assert checkpoint.info.step == 3
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


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    os.truncate(tmp_path / "step-00000003.safetensors", 40)
    with pytest.raises(RunError, match=r"no usable checkpoint: .*step-00000003.safetensors is damaged"):
        store.load_latest()


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    store = make_store(tmp_path, 3)
    (tmp_path / ".step-00000004.safetensors.123.tmp").write_bytes(b"half")
    (tmp_path / "step-00000004.safetensors").write_bytes(b"without its JSON")
    checkpoint = store.load_latest()
    assert checkpoint is not None and checkpoint.info.step == 3 and checkpoint.warnings == []
    store.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003.json", "step-00000003.safetensors"]


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_full_disk_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int) -> None:
    """The disk fills up while the tensors (1) or the JSON (2) are flushed."""
    store = make_store(tmp_path, 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
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
    with pytest.raises(RunError) as caught:
        store.save(make_info(4), make_state(4))
    message = str(caught.value)
    assert "step-00000004.safetensors: no space left on device" in message and "\n" not in message
    assert f"the last good checkpoint is {tmp_path / 'step-00000003.safetensors'}" in message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_write_that_the_system_cuts_short_harms_nothing(tmp_path: Path) -> None:
    """A real partial write: the kernel refuses bytes beyond a limit."""
    make_store(tmp_path, 3)
    before = sorted(path.name for path in tmp_path.iterdir())
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from shared.errors import RunError\n"
        "from tests.unit.test_training_checkpoints import CheckpointStore, make_info\n"
        "try:\n"
        "    CheckpointStore(Path(sys.argv[1]), 3).save(make_info(4), {'weight/a': np.zeros(9999, np.float32)})\n"
        "except RunError as error:\n"
        "    print(error)\n"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit_file_size,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cannot write checkpoint" in done.stdout and "file too large" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == before
