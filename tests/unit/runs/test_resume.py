"""Runs that are killed, stopped, damaged or moved to the other engine go on exactly where they were."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import RunError
from shared.model import parameter_manifest
from shared.spec import Spec
from shared.tolerances import LOSS_CURVE_ABS
from shared.training.run import RunResult, train_run
from tests import ROOT
from tests.command_line import set_words
from tests.fake_study import events_of
from tests.fake_training import RecordingObserver, tiny_spec
from tests.processes import WAIT_S, started, wait_until

# Every test here starts processes or trains several runs.
pytestmark = pytest.mark.slow

KILLS = 10
# Between two looks at a run whose steps take 5 ms.
QUICKLY_S = 0.002
SMALL = (
    "training.compile=false",
    "training.batch_symbols=128",
    "training.log_every_steps=1",
    "evaluation.val_symbols=1024",
)


def command(runs: Path, name: str, *overrides: str, resume: bool = False) -> list[str]:
    words = [sys.executable, "-m", "mlx_train", "tiny", "--runs-dir", str(runs), "--run", name, "--no-finish"]
    return [*words, *set_words(*SMALL, *overrides), *(["--resume"] if resume else [])]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_to_end(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_S, check=False)


def curve(folder: Path) -> list[tuple[Any, ...]]:
    """Everything of the logged steps and validations that is not a measurement of time."""
    keys = {
        "step": ("step", "nats_per_symbol", "grad_norm", "lr_factor", "progress_frac", "symbols"),
        "validation": ("step", "bpb", "low_bpb", "high_bpb", "nats", "symbols"),
    }
    return [(event["event"], *(event[key] for key in keys[event["event"]])) for event in events_of(folder, *keys)]


def lines(log: Path) -> int:
    """How many lines a log has: looked at so often that parsing them would take longer than the run."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def half_written(checkpoints: Path) -> bool:
    """Whether a checkpoint is being written: a temporary file, or tensors without their JSON."""
    names = {entry.name for entry in os.scandir(checkpoints)} if checkpoints.is_dir() else set()
    tensors = {name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")}
    finished = {name.removesuffix(".json") for name in names if name.endswith(".json")}
    return any(name.startswith(".") for name in names) or not tensors <= finished


def kill_while_writing(process: subprocess.Popen[str], checkpoints: Path) -> bool:
    """SIGKILL while a checkpoint is half-written: the process is frozen first, to be sure that it is."""
    limit = time.monotonic() + WAIT_S
    while process.poll() is None and time.monotonic() < limit:
        if half_written(checkpoints):
            process.send_signal(signal.SIGSTOP)
            if half_written(checkpoints):
                process.kill()
                process.wait()
                return True
            process.send_signal(signal.SIGCONT)
    return False


def test_killed_at_random_moments_the_loss_curve_is_that_of_a_run_in_peace(tmp_path: Path) -> None:
    """At least ten kills, every other one in the middle of writing a checkpoint."""
    overrides = ("training.steps=70", "training.val_every_steps=10", "training.checkpoint_every_steps=1")
    assert run_to_end(command(tmp_path, "peace", *overrides)).returncode == 0
    rng = np.random.default_rng(11)
    folder = tmp_path / "killed"
    log = folder / "metrics.jsonl"
    kills = kills_while_writing = 0
    while kills < KILLS:
        before = lines(log)
        with started(command(tmp_path, "killed", *overrides, resume=True), env=ENVIRONMENT) as process:
            target = before + int(rng.integers(1, 7))
            wait_until(lambda target=target: lines(log) >= target, "its events", process, QUICKLY_S)
            if kills % 2:
                kills_while_writing += kill_while_writing(process, folder / "checkpoints")
            else:
                time.sleep(float(rng.uniform(0.0, 0.04)))
                process.kill()
            process.wait()
            assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        kills += 1
    last = run_to_end(command(tmp_path, "killed", *overrides, resume=True))
    assert last.returncode == 0, last.stderr
    assert kills >= 10 and kills_while_writing == KILLS // 2
    assert curve(folder) == curve(tmp_path / "peace")
    assert [event["step"] for event in events_of(folder, "step")] == list(range(1, 71)), "each step once"
    tensors = "checkpoints/step-00000070.safetensors"
    assert (folder / tensors).read_bytes() == (tmp_path / "peace" / tensors).read_bytes()
    assert not half_written(folder / "checkpoints")


STOPPED = ("training.steps=40", "training.val_every_steps=15")


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody stops."""
    runs = tmp_path_factory.mktemp("peace")
    assert run_to_end(command(runs, "peace", *STOPPED)).returncode == 0
    return runs / "peace"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_printed_command_goes_on_exactly(
    tmp_path: Path, peace: Path, number: signal.Signals, status: int
) -> None:
    folder = tmp_path / "stopped"
    with started(command(tmp_path, "stopped", *STOPPED), env=ENVIRONMENT) as process:
        wait_until(lambda: len(events_of(folder, "step")) >= 5, "step 5", process, QUICKLY_S)
        process.send_signal(number)
        errors = process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == status, errors
    stopped_at = len(events_of(folder, "step"))
    assert stopped_at < 40 and (folder / f"checkpoints/step-{stopped_at:08d}.json").exists()
    (advice,) = [line for line in errors.splitlines() if line.startswith("resume with: ")]
    words = shlex.split(advice.removeprefix("resume with: "))
    assert words[:3] == ["bytetwin", "train", "tiny"] and words[-3:] == ["--run", "stopped", "--resume"]
    resumed = run_to_end([sys.executable, "-m", "shared.cli.main", *words[1:], "--no-finish"])
    assert resumed.returncode == 0, resumed.stderr
    assert curve(folder) == curve(peace)


def train(
    runs: Path, name: str, spec: Spec, engine: str = "mlx", stop_after: int | None = None, resume: bool = False
) -> tuple[RunResult, RecordingObserver]:
    """Train in this process; a real SIGINT stops it after some steps: it comes while the last of them is in flight."""
    before = stop_after - 1 if stop_after else None
    observer = RecordingObserver(lambda event, step: os.kill(os.getpid(), signal.SIGINT) if step == before else None)
    result = train_run(spec, engine, observer, runs_dir=runs, run_name=name, resume=resume, finish=False)
    return result, observer


def losses(folder: Path) -> np.ndarray:
    return np.array([event["nats_per_symbol"] for event in events_of(folder, "step")])


MOVED = ("training.steps=60", "training.log_every_steps=1", "training.batch_symbols=512", "evaluation.val_symbols=1024")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 steps on each engine, in runs of their names."""
    runs = tmp_path_factory.mktemp("straight")
    for engine in ("mlx", "torch"):
        train(runs, engine, tiny_spec(*MOVED), engine)
    return runs


@pytest.mark.parametrize(("first", "second"), [("mlx", "torch"), ("torch", "mlx")])
def test_a_run_moves_to_the_other_engine(tmp_path: Path, straight: Path, first: str, second: str) -> None:
    """30 steps on one engine and 30 on the other, against 60 on either."""
    stopped, _ = train(tmp_path, "moved", tiny_spec(*MOVED), first, stop_after=30)
    assert stopped.outcome.status == "interrupted" and stopped.outcome.step == 30 and stopped.exit_status == 130
    moved, _ = train(tmp_path, "moved", tiny_spec(*MOVED), second, resume=True)
    assert moved.outcome.status == "finished" and moved.exit_status == 0
    found = losses(tmp_path / "moved")
    assert len(found) == 60
    assert np.array_equal(found[:30], losses(straight / first)[:30])
    for engine in (first, second):
        difference = np.abs(found - losses(straight / engine)).max()
        print(f"{first} then {second} against {engine}: {difference:.2e} nats")
        assert difference <= LOSS_CURVE_ABS, f"{first} then {second} against {engine}: {difference}"


@pytest.mark.parametrize("engine", ["mlx", "torch"])
def test_stopping_and_resuming_is_exact_to_the_last_bit_of_the_state(tmp_path: Path, engine: str) -> None:
    spec = tiny_spec("training.steps=12", "training.log_every_steps=1", "evaluation.val_symbols=1024")
    train(tmp_path, "peace", spec, engine)
    train(tmp_path, "stopped", spec, engine, stop_after=5)
    train(tmp_path, "stopped", spec, engine, resume=True)
    assert curve(tmp_path / "stopped") == curve(tmp_path / "peace")
    tensors = "checkpoints/step-00000012.safetensors"
    assert (tmp_path / "stopped" / tensors).read_bytes() == (tmp_path / "peace" / tensors).read_bytes()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    spec = tiny_spec("training.steps=20", "training.log_every_steps=1", "training.checkpoint_every_steps=4")
    train(tmp_path, "peace", spec)
    train(tmp_path, "damaged", spec, stop_after=12)
    newest = tmp_path / "damaged" / "checkpoints" / "step-00000012.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    result, observer = train(tmp_path, "damaged", spec, resume=True)
    assert result.exit_status == 0
    (warning,) = observer.named("warning")
    assert f"checkpoint {newest} is damaged (its SHA-256 differs from the recorded one); continuing from" in warning
    assert warning.endswith("step-00000008.safetensors")
    assert curve(tmp_path / "damaged") == curve(tmp_path / "peace")
    for path in (tmp_path / "damaged" / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"gone")
    with pytest.raises(RunError, match="no usable checkpoint"):
        train(tmp_path, "damaged", spec, resume=True)


def test_a_checkpoint_of_another_spec_is_one_clear_line_and_status_2(tmp_path: Path) -> None:
    """Through the command line: another seed, and a checkpoint of another model in the run's folder."""
    train(tmp_path, "a", tiny_spec(*SMALL, "training.steps=3"))
    train(tmp_path, "b", tiny_spec(*SMALL, "training.steps=3", "model.num_layers=1"))
    seed = run_to_end(command(tmp_path, "a", "training.steps=3", "training.seed=5", resume=True))
    folder = tmp_path / "a" / "checkpoints"
    for path in (tmp_path / "b" / "checkpoints").iterdir():
        shutil.copy(path, folder / path.name)
    model = run_to_end(command(tmp_path, "a", "training.steps=3", resume=True))
    for done, key in ((seed, "training.seed = 1337, now it is 5"), (model, "model.num_layers = 1, now it is")):
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("bytetwin: ") and key in line
    assert str(folder / "step-00000003.safetensors") in model.stderr


@pytest.mark.parametrize("engine", ["mlx", "torch"])
def test_a_learning_rate_that_overflows_stops_with_step_parameter_and_checkpoint(tmp_path: Path, engine: str) -> None:
    spec = tiny_spec(
        "training.steps=10",
        "training.checkpoint_every_steps=1",
        "schedule.warmup_frac=0.2",
        "optimizer.scalar_lr=1e20",
        "evaluation.val_symbols=1024",
    )
    result, _ = train(tmp_path, "nan", spec, engine)
    assert result.outcome.status == "failed" and result.exit_status == 1
    (event,) = events_of(tmp_path / "nan", "failed")
    assert event["parameter"] in {parameter.name for parameter in parameter_manifest(spec)}
    assert event["failed_step"] == result.outcome.step + 1
    assert result.outcome.checkpoint is not None and event["last_checkpoint"] == str(result.outcome.checkpoint)
    message = result.outcome.message
    assert f"step {event['failed_step']}: " in message and event["parameter"] in message
    assert message.endswith(f"the last good checkpoint is {result.outcome.checkpoint}") and "\n" not in message
