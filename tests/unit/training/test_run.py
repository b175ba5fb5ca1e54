"""`bytetwin train` from the command line to score.json."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.compressed import measure_heldout
from data.making import make_missing
from shared.artifact import read_artifact
from shared.errors import RunError
from shared.runs.checkpoints import CheckpointStore, signed
from shared.runs.run_directory import open_run
from shared.scoring.checks import Check
from shared.scoring.document import read_score
from shared.spec import load_spec, spec_id
from shared.tolerances import PACKING_BPB
from shared.training.finish import Finished, OpenRun, Packing, find_problems
from shared.training.interruption import ENDED
from shared.training.run import RunResult, train_run
from shared.training.sources import open_sources
from tests.command_line import CommandLine, set_words
from tests.datasets import write_dataset
from tests.fake_study import edited, events_of, read_json
from tests.fake_training import SHORT, RecordingObserver, tiny_spec
from tests.processes import WAIT_S

WORDS = ["train", "tiny", "--engine", "mlx", *set_words("training.compile=false", *SHORT), "--runs-dir"]


@dataclass
class Trained:
    """One complete run, and what its observer was told."""

    result: RunResult
    observer: RecordingObserver

    @property
    def folder(self) -> Path:
        return self.result.run.path

    @property
    def finished(self) -> Finished:
        assert self.result.finished is not None
        return self.result.finished


def train(runs: Path, on_event: Callable[[str, int], None] = lambda name, step: None, **options: Any) -> Trained:
    """Train, or resume, the run `a`."""
    observer = RecordingObserver(on_event)
    return Trained(train_run(tiny_spec(*SHORT), "mlx", observer, runs_dir=runs, run_name="a", **options), observer)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    make_missing("builtin")
    measure_heldout("builtin")
    trained = train(tmp_path_factory.mktemp("runs"))
    assert trained.result.exit_status == 0
    return trained


def test_a_run_directory_holds_everything(done: Trained) -> None:
    folder = done.folder
    files = (
        "artifact.btw checkpoints documents.safetensors environment.json metrics.jsonl report.html score.json spec.toml"
    )
    assert " ".join(sorted(path.name for path in folder.iterdir())) == files
    environment = read_json(folder / "environment.json")
    assert environment["engine"] == "mlx" and environment["packages"]["mlx"]
    assert environment["float32_products"] == "float32"
    assert environment["data"]["train"]["name"] == "builtin/train"
    assert len(environment["data"]["heldout"]["sha256"]) == 64
    spec = load_spec(folder / "spec.toml")
    assert read_artifact(folder / "artifact.btw").info.spec_id == spec_id(spec)


def test_the_score_is_that_of_the_artifact_on_all_heldout_text(done: Trained) -> None:
    score, artifact = read_score(done.folder / "score.json"), (done.folder / "artifact.btw").read_bytes()
    assert score.weights == "packed" and score.dataset.complete and score.audit.passed
    assert score.artifact_bytes == len(artifact) and score.artifact_sha256 == hashlib.sha256(artifact).hexdigest()
    assert set(score.compressors) == {"xz -9", "zstd -19", "brotli -11"}
    assert done.observer.named("progress")[-1] == (score.symbols, score.symbols)
    phases = ["validation", "packing", "validation of the artifact", "scoring", "audit", "report"]
    assert done.observer.named("phase") == phases


def test_what_packing_costs_is_measured_on_the_same_text(done: Trained) -> None:
    packing = done.finished.packing
    (validation,) = events_of(done.folder, "validation")
    assert packing.unpacked_bpb == validation["bpb"]
    assert packing.packed_bpb != packing.unpacked_bpb
    assert abs(packing.difference_bpb) <= PACKING_BPB


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_a_run_begins_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Some network file systems have none: then nobody knows whether a run is in use, which does not stop it."""

    def no_locks(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("shared.files.fcntl.flock", no_locks)
    run = open_run(tmp_path, "a", tiny_spec(*SHORT), "mlx", resume=False)
    assert not run.has_locks and run.is_in_use() is None
    if code == errno.ENOLCK:
        trained = train(tmp_path, resume=True, finish=False)
        (warning,) = trained.observer.named("warning")
        assert trained.result.exit_status == 0 and "its file system has no locks" in warning


def test_problems_name_what_was_refused(done: Trained) -> None:
    good = done.finished
    assert good.problems == []
    costly = find_problems(good.score, Packing(2.0, 2.02))
    assert costly == ["packing: costs 0.0200 bits per byte, at most 0.01 is allowed"]
    (tight,) = find_problems(good.score.model_copy(update={"limit_bytes": 1000}), good.packing)
    assert tight.startswith("budget: ")
    checks = [good.score.audit.checks[0].model_copy(update={"passed": False})]
    leaky = good.score.model_copy(update={"audit": good.score.audit.model_copy(update={"checks": checks})})
    (problem,) = find_problems(leaky, good.packing, [Check("average", True, 0.0, 0.0, "")])
    assert problem.startswith("audit: future: ")
    (problem,) = find_problems(good.score, good.packing, [Check("average", False, 1.0, 0.0, "it is empty")])
    assert problem == "average: it is empty"


@pytest.mark.slow
def test_stdout_carries_one_json_document(cli: CommandLine, tmp_path: Path) -> None:
    found = cli(*WORDS, tmp_path, "--run", "a", "--json")
    document = found.document
    assert found.status == 0 and document["status"] == "finished" and document["problems"] == []
    assert document["run"] == str(tmp_path / "a") and document["steps"] == 6
    assert document["score"]["bpb"] == read_json(tmp_path / "a" / "score.json")["bpb"]
    assert document["packing"]["limit_bpb"] == PACKING_BPB
    assert math.isfinite(document["train_nats"]) and document["validation"]["step"] == 6
    for shown in ("xz -9", "zstd -19", "brotli -11", "packing: ", "step 6/6"):
        assert shown in found.err


def test_no_finish_stops_after_training(cli: CommandLine, tmp_path: Path) -> None:
    assert cli.document(*WORDS, tmp_path, "--run", "a", "--no-finish")["score"] is None
    assert not (tmp_path / "a" / "artifact.btw").exists()


@pytest.mark.slow
def test_micro_batches_left_to_the_device_are_those_of_the_run(cli: CommandLine, tmp_path: Path) -> None:
    words = (*WORDS, tmp_path, "--run", "a", "--set", "training.micro_batch_symbols=auto")
    cli.document(*words)
    assert load_spec(tmp_path / "a" / "spec.toml").training.micro_batch_symbols > 0
    assert cli.document(*words, "--resume")["message"].endswith("already finished")


@pytest.mark.slow
def test_a_run_over_budget_has_status_1(cli: CommandLine, tmp_path: Path) -> None:
    found = cli(*WORDS, tmp_path, "--set", "budget.total_bytes=1000", "--json")
    (problem,) = found.document["problems"]
    assert found.status == 1 and problem.startswith("budget: ") and problem in found.err
    assert (tmp_path / "tiny-mlx-1" / "score.json").exists()


def test_a_run_that_breaks_down_has_status_1_and_one_line(cli: CommandLine, tmp_path: Path) -> None:
    found = cli(*WORDS, tmp_path, "--run", "a", "--set", "optimizer.scalar_lr=1e20", "--json")
    document = found.document
    assert found.status == 1 and document["status"] == "failed" and document["score"] is None
    (line,) = [line for line in found.err.splitlines() if line.startswith("bytetwin: ")]
    assert line == f"bytetwin: {document['message']}" and "is not a finite number" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "a/b"], "run name 'a/b': use letters"),
        (["--resume"], "--resume needs --run NAME"),
        (["--set", "data.train=nothing"], "no dataset 'nothing'"),
        (["--set", "model.head_dim=7"], "model.head_dim = 7"),
        (["--set", "training.stepps=7"], "did you mean 'steps'?"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_leaves_nothing(
    cli: CommandLine, tmp_path: Path, words: list[str], message: str
) -> None:
    assert message in cli.refusal(*WORDS, tmp_path / "runs", *words)
    assert not (tmp_path / "runs").exists()


def test_an_existing_name_is_status_2(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert "exists; continue it with --resume" in cli.refusal(*WORDS, tmp_path, "--run", "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_full_disk_is_status_2_with_one_line(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CheckpointStore.save

    def fill_up(store: CheckpointStore, info: Any, state: Any) -> Path:
        if info.step == 4:
            monkeypatch.setattr("shared.files.os.fsync", no_space)
        return real(store, info, state)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "save", fill_up)
    found = cli(*WORDS, tmp_path, "--run", "a", "--set", "training.checkpoint_every_steps=2")
    assert found.status == 2
    (line,) = [line for line in found.err.splitlines() if line.startswith("bytetwin: ")]
    assert "no space left on device" in line
    names = sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir())
    assert names == ["step-00000002.json", "step-00000002.safetensors"]


@pytest.mark.slow
def test_a_signal_while_finishing_is_not_lost(tmp_path: Path) -> None:
    """Stopped in one phase after the other, each time resumed; the training itself is never done again."""
    train(tmp_path, finish=False)
    for phase in ("packing", "validation of the artifact", "scoring", "nothing"):

        def stop(name: str, step: int, phase: str = phase) -> None:
            if name == phase:
                os.kill(os.getpid(), signal.SIGINT)

        trained = train(tmp_path, stop, resume=True)
        result = trained.result
        assert trained.observer.named("step") == []
        if phase != "nothing":
            assert result.exit_status == 130 and result.outcome.status == "interrupted" and result.finished is None
            assert trained.observer.named("end") == ["interrupted"]
            assert not (tmp_path / "a" / "score.json").exists()
    assert result.exit_status == 0 and result.finished is not None
    assert (tmp_path / "a" / "score.json").exists()


def test_finishing_is_ended_where_it_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost with it, so that a library is not waited for."""
    ended: list[tuple[int, str]] = []
    done = threading.Event()

    def end_process(status: int, words: str) -> None:
        ended.append((status, words))
        done.set()

    def hang(opened: OpenRun, unpacked: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert done.wait(WAIT_S)

    monkeypatch.setattr("shared.training.interruption.BRIEF_GRACE_S", 0.01)
    monkeypatch.setattr("shared.training.interruption.end_process", end_process)
    monkeypatch.setattr("shared.training.run.finish_run", hang)
    trained = train(tmp_path, resume_command=lambda name: f"resume {name}")
    assert ended == [(130, "bytetwin: still busy 0.01 s after SIGINT, " + ENDED + "; resume with: resume a\n")]
    assert trained.result.exit_status == 130 and trained.result.outcome.status == "interrupted"


def test_a_checkpoint_whose_loader_stands_elsewhere_is_refused(tmp_path: Path) -> None:
    train(tmp_path, finish=False)
    with edited(tmp_path / "a" / "checkpoints" / "step-00000006.json") as values:
        values["loader"]["step"] = 2
        values.update(signed(values))
    with pytest.raises(RunError, match="its loader is at step 2, not 6"):
        train(tmp_path, resume=True)


def test_a_run_that_no_gradient_reaches_ends_with_its_first_step(tmp_path: Path) -> None:
    """Such as one of adapters behind a head of zeros, which would be found out after all its steps."""
    words = ["model.lora.rank=1", "training.freeze=base"]
    spec = tiny_spec(*words, "model.tie_embeddings=false", "model.decoder.kind=linear")
    outcome = train_run(spec, "torch", RecordingObserver(), runs_dir=tmp_path, run_name="none").outcome
    assert outcome.status == "failed" and outcome.step == 0
    assert "no gradient reaches what is trained (training.freeze 'base'" in outcome.message


@pytest.mark.usefixtures("datasets")
def test_bytes_per_symbol_are_those_of_the_training_text() -> None:
    """Documents of 99 bytes have 100 symbols where a document begins with one of its own."""
    write_dataset(train=[bytes([letter]) * 99 for letter in b"abcdefghij" * 10], heldout=[b"x" * 2000])
    words = ("data.train=toy", "data.heldout=toy", "evaluation.val_symbols=640")
    assert open_sources(tiny_spec(*words)).bytes_per_symbol == 1.0
    assert open_sources(tiny_spec("vocabulary.kind=byte260", *words)).bytes_per_symbol == 0.99
