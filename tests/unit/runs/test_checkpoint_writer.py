"""Checkpoints are written while training goes on, and what is said about them is true."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from shared.engine.protocol import StepResult, Weights
from shared.errors import RunError
from shared.model import parameter_counts, parameter_manifest
from shared.model.stages import StepNumbers
from shared.optim import initial_state
from shared.runs.checkpoints import CheckpointInfo, CheckpointStore
from shared.spec import load_spec
from shared.training.interruption import GRACE_S, Interruption
from tests.fake_study import events_of
from tests.fake_training import FakeEngine
from tests.loop_harness import make
from tests.processes import WAIT_S, started, wait_until


class SlowStore(CheckpointStore):
    """Writes only when it is told to."""

    def __init__(self, folder: Path, keep: int) -> None:
        super().__init__(folder, keep)
        self.go = threading.Event()
        self.running = 0

    def save(self, info: CheckpointInfo, state: Mapping[str, np.ndarray]) -> Path:
        self.running += 1
        assert self.running == 1, "one write at a time"
        assert self.go.wait(WAIT_S), "nobody lets it go on"
        path = super().save(info, state)
        self.running -= 1
        return path


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """The write of step 6 takes until step 10 is reported; until then nobody says that there is a checkpoint."""
    store = SlowStore(tmp_path / "checkpoints", 2)
    harness = make(tmp_path, "training.val_every_steps=0", store=store)
    announced: list[list[int]] = []

    def watch(name: str, step: int) -> None:
        announced.append(harness.observer.named("checkpoint"))
        if step == 10:
            assert store.steps() == []
            store.go.set()

    harness.observer.on_event = watch
    outcome = harness.start()
    assert outcome.status == "finished" and outcome.checkpoint == store.latest_path()
    assert all(steps == [] for steps in announced[:10])
    assert harness.observer.named("checkpoint") == [6, 12, 18, 23]
    assert [r["step"] for r in harness.events("checkpoint")] == [6, 12, 18, 23]


def test_a_checkpoint_holds_the_state_of_its_own_step_though_it_is_written_later(tmp_path: Path) -> None:
    store = SlowStore(tmp_path / "slow" / "checkpoints", 9)
    harness = make(tmp_path / "slow", "training.keep_checkpoints=9", store=store)
    harness.observer.on_event = lambda name, step: store.go.set() if step == 10 else None
    harness.start()
    make(tmp_path / "peace", "training.keep_checkpoints=9").start()
    for step in (6, 12, 18, 23):
        name = f"checkpoints/step-{step:08d}.safetensors"
        assert (tmp_path / "slow" / name).read_bytes() == (tmp_path / "peace" / name).read_bytes()


def test_a_write_that_fails_stops_the_run_at_a_later_turn(tmp_path: Path) -> None:
    class FullStore(CheckpointStore):
        def save(self, info: CheckpointInfo, state: Mapping[str, np.ndarray]) -> Path:
            if info.step > 6:
                raise RunError("cannot write checkpoint: no space left on device")
            return super().save(info, state)

    harness = make(tmp_path, "training.steps=200", store=FullStore(tmp_path / "checkpoints", 2))
    with pytest.raises(RunError, match="no space left on device"):
        harness.start()
    assert harness.observer.named("checkpoint") == [6]
    assert 12 <= len(harness.observer.named("step")) <= 18, "at the latest when the next one is due"
    broken = make(tmp_path / "end", "training.checkpoint_every_steps=0", store=FullStore(tmp_path / "end", 2))
    with pytest.raises(RunError, match="no space left on device"):
        broken.start()


def test_a_failure_names_the_checkpoint_that_was_still_being_written(tmp_path: Path) -> None:
    store = SlowStore(tmp_path / "checkpoints", 2)
    harness = make(tmp_path, engine={"broken_at": 8}, store=store)
    threading.Timer(0.2, store.go.set).start()
    outcome = harness.start()
    assert outcome.status == "failed"
    assert outcome.message.endswith(f"the last good checkpoint is {tmp_path}/checkpoints/step-00000006.safetensors")
    assert harness.observer.named("checkpoint") == [6]


def test_the_best_checkpoint_outlives_the_last_ones(tmp_path: Path) -> None:
    """Every checkpoint right after a validation; the scores fall until step 8 and rise again."""
    overrides = ("training.val_every_steps=4", "training.checkpoint_every_steps=4", "training.keep_checkpoints=2")
    harness = make(tmp_path, *overrides, score=lambda step: 1.0 + abs(step - 8) / 100)
    outcome = harness.start()
    assert harness.store_steps() == [8, 20, 23]
    assert outcome.best_validation is not None and outcome.best_validation.step == 8
    best = CheckpointStore(tmp_path / "checkpoints", 2).load_best()
    assert best is not None and best.info.step == 8


class FullSizeEngine(FakeEngine):
    """Saves as much as the h100 preset does: weights, momenta and the average, 27 million parameters."""

    def initialise(self, weights: Weights) -> None:
        super().initialise(weights)
        spec = load_spec("h100")
        ones = {parameter.name: np.ones(parameter.shape, np.float32) for parameter in parameter_manifest(spec)}
        self.large = {f"weight/{name}": value for name, value in ones.items()} | initial_state(spec, ones)

    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        time.sleep(0.02)
        return super().train_step(x, numbers)

    def save_state(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in {**self.large, **super().save_state()}.items()}


def train_at_full_size(folder: Path) -> int:
    """Train until a signal comes, writing checkpoints all the time; returns the exit status.

    Prints the seconds from the signal to the end, those of this process alone: how busy the machine is with others
    says nothing about it.
    """
    signalled_s: list[float] = []
    harness = make(folder, "training.steps=1000000", "training.val_every_steps=0", "training.checkpoint_every_steps=5")
    harness.engine = FullSizeEngine(harness.spec)
    harness.interruption = Interruption(lambda: signalled_s.append(time.process_time()), grace_s=WAIT_S)
    with harness.interruption:
        harness.start()
    print(time.process_time() - signalled_s[0])
    return harness.interruption.exit_status


@pytest.mark.slow
def test_sigterm_saves_the_h100_preset_in_time(tmp_path: Path) -> None:
    """The notice comes while a checkpoint is being written: that one has to end before the last one begins."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.unit.runs.test_checkpoint_writer import train_at_full_size\n"
        "sys.exit(train_at_full_size(Path(sys.argv[1])))\n"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    checkpoints = tmp_path / "checkpoints"
    with started(words) as process:
        wait_until(lambda: list(checkpoints.glob(".*tmp*")), "a checkpoint is begun", process)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143 and errors == "", errors
    assert 0.0 < float(output) < GRACE_S, f"{float(output):.1f} s from the signal to the end"
    checkpoint = CheckpointStore(checkpoints, 2).load_latest()
    (interrupted,) = events_of(tmp_path, "interrupted")
    assert checkpoint is not None and checkpoint.warnings == [] and checkpoint.info.step == interrupted["step"]
    # Weights, momenta and average, 4 bytes each.
    least_bytes = 3 * 4 * parameter_counts(load_spec("h100"))["total"]
    assert sum(value.nbytes for value in checkpoint.state.values()) >= least_bytes > 250e6
