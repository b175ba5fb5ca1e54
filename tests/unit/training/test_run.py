"""`bytetwin train` from the command line to score.json."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from data.compressed import measure_heldout
from data.datasets import make_missing
from shared.artifact import read_artifact
from shared.cli.main import main
from shared.errors import RunError
from shared.runs.checkpoints import CheckpointStore
from shared.runs.metrics import read_events
from shared.scoring.checks import Check
from shared.scoring.document import read_score
from shared.spec import load_spec, spec_id
from shared.tolerances import PACKING_BPB
from shared.training.finish import Packing, find_problems
from shared.training.run import train_run
from tests.fake_training import RecordingObserver, tiny_spec

SHORT = ("training.steps=6", "evaluation.val_symbols=1024", "evaluation.batch_symbols=16384")
SMALL = [word for override in ("training.compile=false", *SHORT) for word in ("--set", override)]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["train", "tiny", "--engine", "mlx", *SMALL, *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One complete run and its document."""
    runs = tmp_path_factory.mktemp("runs")
    make_missing("builtin")
    measure_heldout("builtin")
    observer = RecordingObserver()
    spec = tiny_spec(*SHORT)
    result = train_run(spec, "mlx", observer, runs_dir=runs, run_name="done")
    assert result.finished is not None and result.exit_status == 0
    phases = observer.named("phase")
    return runs, {"result": result, "phases": phases, "progress": observer.named("progress")}


def test_a_run_directory_holds_everything(finished: tuple[Path, dict[str, Any]]) -> None:
    folder = finished[0] / "done"
    assert sorted(path.name for path in folder.iterdir()) == [
        "artifact.btw",
        "checkpoints",
        "documents.safetensors",
        "environment.json",
        "metrics.jsonl",
        "report.html",
        "score.json",
        "spec.toml",
    ]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["engine"] == "mlx" and environment["packages"]["mlx"]
    assert environment["float32_products"] == "float32"
    assert environment["data"]["train"]["name"] == "builtin/train"
    assert len(environment["data"]["heldout"]["sha256"]) == 64
    spec = load_spec(folder / "spec.toml")
    assert read_artifact(folder / "artifact.btw").info.spec_id == spec_id(spec)


def test_the_score_is_that_of_the_artifact_on_all_heldout_text(finished: tuple[Path, dict[str, Any]]) -> None:
    runs, seen = finished
    score = read_score(runs / "done" / "score.json")
    assert score.weights == "packed" and score.dataset.complete and score.audit.passed
    assert score.artifact_bytes == (runs / "done" / "artifact.btw").stat().st_size
    assert score.artifact_sha256 == hashlib.sha256((runs / "done" / "artifact.btw").read_bytes()).hexdigest()
    assert set(score.compressors) == {"xz -9", "zstd -19", "brotli -11"}
    assert seen["progress"][-1] == (score.symbols, score.symbols)
    assert seen["phases"] == ["validation", "packing", "validation of the artifact", "scoring", "audit", "report"]


def test_what_packing_costs_is_measured_on_the_same_text(finished: tuple[Path, dict[str, Any]]) -> None:
    runs, seen = finished
    packing = seen["result"].finished.packing
    (validation,) = [r for r in read_events(runs / "done" / "metrics.jsonl") if r["event"] == "validation"]
    assert packing.unpacked_bpb == validation["bpb"]
    assert packing.packed_bpb != packing.unpacked_bpb
    assert abs(packing.difference_bpb) <= PACKING_BPB


def test_problems_name_what_was_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    good = finished[1]["result"].finished
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
def test_stdout_carries_one_json_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = call(capsys, "--runs-dir", str(tmp_path), "--run", "a", "--json")
    document = json.loads(out)
    assert status == 0 and document["status"] == "finished" and document["problems"] == []
    assert document["run"] == str(tmp_path / "a") and document["steps"] == 6
    assert document["score"]["bpb"] == json.loads((tmp_path / "a" / "score.json").read_text())["bpb"]
    assert document["packing"]["limit_bpb"] == PACKING_BPB
    assert math.isfinite(document["train_nats"]) and document["validation"]["step"] == 6
    for shown in ("xz -9", "zstd -19", "brotli -11", "packing: ", "step 6/6"):
        assert shown in err


def test_no_finish_stops_after_training(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = call(capsys, "--runs-dir", str(tmp_path), "--run", "a", "--no-finish", "--json")
    assert status == 0 and json.loads(out)["score"] is None
    assert not (tmp_path / "a" / "artifact.btw").exists()


@pytest.mark.slow
def test_a_run_over_budget_has_status_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = call(capsys, "--runs-dir", str(tmp_path), "--set", "budget.total_bytes=1000", "--json")
    (problem,) = json.loads(out)["problems"]
    assert status == 1 and problem.startswith("budget: ") and problem in err
    assert (tmp_path / "tiny-mlx-1" / "score.json").exists()


def test_a_run_that_breaks_down_has_status_1_and_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("--runs-dir", str(tmp_path), "--run", "a", "--set", "optimizer.scalar_lr=1e20", "--json")
    status, out, err = call(capsys, *words)
    document = json.loads(out)
    assert status == 1 and document["status"] == "failed" and document["score"] is None
    (line,) = [line for line in err.splitlines() if line.startswith("bytetwin: ")]
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
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    status, out, err = call(capsys, "--runs-dir", str(tmp_path / "runs"), *words)
    assert status == 2 and out == ""
    assert err.startswith("bytetwin: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "runs").exists()


def test_an_existing_name_is_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    status, _, err = call(capsys, "--runs-dir", str(tmp_path), "--run", "a")
    assert status == 2 and err.count("\n") == 1 and "exists; continue it with --resume" in err
    assert list((tmp_path / "a").iterdir()) == []


def test_a_full_disk_is_status_2_with_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CheckpointStore.save

    def fill_up(store: CheckpointStore, info: Any, state: Any) -> Path:
        if info.step == 4:
            monkeypatch.setattr("shared.files.os.fsync", no_space)
        return real(store, info, state)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "save", fill_up)
    words = ("--runs-dir", str(tmp_path), "--run", "a", "--set", "training.checkpoint_every_steps=2")
    status, _, err = call(capsys, *words)
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("bytetwin: ")]
    assert "no space left on device" in line
    assert sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir()) == [
        "step-00000002.json",
        "step-00000002.safetensors",
    ]


@pytest.mark.slow
def test_a_signal_while_finishing_is_not_lost(tmp_path: Path) -> None:
    """Stopped in one phase after the other, each time resumed; the training itself is never done again."""
    spec = tiny_spec(*SHORT)
    train_run(spec, "mlx", RecordingObserver(), runs_dir=tmp_path, run_name="a", finish=False)
    for phase in ("packing", "validation of the artifact", "scoring", "nothing"):
        observer = RecordingObserver(
            lambda name, step, at=phase: os.kill(os.getpid(), signal.SIGINT) if name == at else None
        )
        result = train_run(spec, "mlx", observer, runs_dir=tmp_path, run_name="a", resume=True)
        assert observer.named("step") == []
        if phase != "nothing":
            assert result.exit_status == 130 and result.outcome.status == "interrupted" and result.finished is None
            assert observer.named("end") == ["interrupted"]
            assert not (tmp_path / "a" / "score.json").exists()
    assert result.exit_status == 0 and result.finished is not None
    assert (tmp_path / "a" / "score.json").exists()


def test_a_checkpoint_whose_loader_stands_elsewhere_is_refused(tmp_path: Path) -> None:
    spec = tiny_spec(*SHORT)
    train_run(spec, "mlx", RecordingObserver(), runs_dir=tmp_path, run_name="a", finish=False)
    path = tmp_path / "a" / "checkpoints" / "step-00000006.json"
    values = json.loads(path.read_text())
    values["loader"]["step"] = 2
    path.write_text(json.dumps(values))
    with pytest.raises(RunError, match="its loader is at step 2, not 6"):
        train_run(spec, "mlx", RecordingObserver(), runs_dir=tmp_path, run_name="a", resume=True)
