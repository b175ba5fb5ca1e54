"""The checks one by one, and `score`, `audit` and `generate` as commands on runs, artifacts and specs."""

from __future__ import annotations

import argparse
import importlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shared.artifact import write_artifact
from shared.cli.command import CommandResult
from shared.engine.oracle import Oracle
from shared.engine.package import available_engines, create_engine
from shared.errors import RunError, UserError
from shared.model import initial_weights, random_weights
from shared.runs.checkpoints import CheckpointInfo, CheckpointStore
from shared.runs.run_directory import RunDirectory
from shared.runs.target import load_audited, load_trained
from shared.scoring.audit import audit_scorer, check_initial_loss
from shared.scoring.bits_per_byte import Score
from shared.scoring.checks import check_denominator, check_plausibility, limit_text
from shared.scoring.confidence import Confidence
from shared.scoring.random_bytes import check_random_bytes, random_bytes_spec
from shared.scoring.windows import plan_windows
from shared.spec import Spec, load_spec, spec_id, spec_to_dict
from tests.museum.fake_stream import FakeStream

SPEC = load_spec("tiny", ["model.num_layers=1", "model.seq_len=32", "training.compile=false"])
TEXT = FakeStream([f"document {index} says nothing much, {index * 7919}.\n".encode() for index in range(14)])
SCORE = Score(600.0, 100, 100, 100, 1, 32, 32, Confidence(0.95, None, None, 1, 1.0), plan_windows(100, 32, 32))


class BrokenScorer:
    """Returns what is not a number."""

    spec = SPEC

    def score(self, x: np.ndarray) -> np.ndarray:
        return np.full(x.shape, np.nan, np.float32)

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        return np.full((*x.shape, 256), np.nan, np.float32)


def test_what_is_not_a_number_never_passes() -> None:
    report = audit_scorer(BrokenScorer(), TEXT)
    assert [check.passed for check in report.checks] == [False, False, False, False]
    assert [check["measured"] for check in report.to_document()["checks"]] == [None, None, None, None]


@pytest.mark.parametrize(
    ("counted", "passed", "warning"),
    [(100_000, True, False), (100_200, True, True), (104_130, False, True), (98_000, False, True)],
)
def test_denominator_limits(counted: int, passed: bool, warning: bool) -> None:
    check = check_denominator(replace(SCORE, bytes=counted, text_bytes=100_000))
    assert (check.passed, check.warning) == (passed, warning)


@pytest.mark.parametrize(
    ("bpb", "parameters", "passed"), [(0.16, 17_000_000, False), (1.2, 17_000_000, True), (0.9, 30_000_000, True)]
)
def test_plausibility_limits(bpb: float, parameters: int, passed: bool) -> None:
    check = check_plausibility(replace(SCORE, nats=bpb * np.log(2.0) * 100), parameters)
    assert check.passed is passed and check.limit == (1.0 if parameters < 20_000_000 else 0.0)


def test_initial_loss_is_ln_v() -> None:
    assert check_initial_loss(Oracle(SPEC, initial_weights(SPEC))).passed
    assert not check_initial_loss(Oracle(SPEC, random_weights(SPEC, 0))).passed


@pytest.mark.parametrize("name", ["tiny", "smoke", "bytes", "itchy"])
def test_random_bytes_keep_the_architecture(name: str) -> None:
    spec = load_spec(name)
    small = random_bytes_spec(spec, 200)
    assert small.model.model_copy(update={"seq_len": spec.model.seq_len}) == spec.model
    assert small.model.seq_len <= 48 and small.model.num_patches >= 2
    assert small.training.batch_symbols <= 768


def test_random_bytes_need_a_step() -> None:
    with pytest.raises(UserError, match="steps = 0"):
        check_random_bytes(lambda spec: create_engine("mlx", spec), SPEC, steps=0)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model.btw"
    write_artifact(path, SPEC, random_weights(SPEC, 0))
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run that was interrupted: spec and checkpoint, no artifact."""
    spec = load_spec("tiny", ["model.num_layers=1", "model.seq_len=32", "training.compile=false"])
    run = RunDirectory(tmp_path / "runs" / "mine")
    run.checkpoints_path.mkdir(parents=True)
    run.write_spec(spec)
    engine = create_engine(available_engines()[0], spec)
    engine.initialise(random_weights(spec, 1))
    state = {name: value + (0.5 if name == "average/embed.start" else 0) for name, value in engine.save_state().items()}
    info = CheckpointInfo(20, 1.0, engine.name, spec_id(spec), spec_to_dict(spec), {})
    CheckpointStore(run.checkpoints_path, 2).save(info, state)
    return run.path


def invoke(name: str, *argv: str) -> CommandResult:
    command = importlib.import_module(f"shared.cli.{name}")
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    command.configure(parser)
    result: CommandResult = command.run(parser.parse_args(argv))
    return result


@pytest.fixture(autouse=True)
def fake_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("score", "audit"):
        monkeypatch.setattr(f"shared.cli.{name}.open_split", lambda *_: TEXT)


@pytest.mark.slow
def test_score_command_on_an_artifact(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = invoke("score", str(artifact), "--engine", "numpy", "--stride", "16")
    assert result.status == 0
    assert (result.document["weights"], result.document["artifact_bytes"]) == ("packed", artifact.stat().st_size)
    assert result.document["stride_symbols"] == 16
    shown = capsys.readouterr()
    for fact in (f"{result.document['bpb']:.4f}", "xz -9", "95% confidence", "windows of 32 by 16", "normalisation"):
        assert fact in shown.out


def test_score_command_on_runs(run_folder: Path, artifact: Path) -> None:
    averaged = invoke("score", "mine", "--engine", "numpy", "--max-symbols", "200").document
    trained = invoke(
        "score", str(run_folder), "--engine", "numpy", "--weights", "trained", "--max-symbols", "200"
    ).document
    assert (averaged["weights"], trained["weights"]) == ("averaged", "trained")
    assert averaged["bpb"] != trained["bpb"] and averaged["artifact_bytes"] is None
    artifact.rename(run_folder / "artifact.btw")
    assert invoke("score", "mine", "--engine", "numpy", "--max-symbols", "200").document["weights"] == "packed"


def test_audit_command(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = invoke("audit", str(artifact), "--engine", "numpy")
    assert result.status == 0 and result.document["passed"]
    assert "audit passed" in capsys.readouterr().out
    untrained = invoke("audit", "tiny", "--set", "model.num_layers=1", "--engine", "numpy", "--max-symbols", "200")
    assert untrained.document["weights"] == "random"
    assert [check["name"] for check in untrained.document["checks"]][-1] == "initial_loss"


def test_audit_command_fails_on_a_wrong_count(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeStream, "byte_counts", lambda self, start, count: np.full(count, 2))
    result = invoke("audit", str(artifact), "--engine", "numpy")
    assert result.status == 1
    assert [check["name"] for check in result.document["checks"] if not check["passed"]] == ["denominator"]


def test_full_audit_trains_on_random_bytes(artifact: Path) -> None:
    engine = available_engines()[-1]
    document = invoke("audit", str(artifact), "--engine", engine, "--full", "--steps", "3").document
    assert document["checks"][-1]["name"] == "random_bytes" and document["passed"]


def test_generate_command(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (str(artifact), "--prompt", "caf\u00e9 ", "--bytes", "12", "--seed", "5", "--engine", "numpy")
    document = invoke("generate", *argv).document
    assert capsys.readouterr().out == f"caf\u00e9 {document['text']}\n"
    assert invoke("generate", *argv, "--json").document == document
    assert capsys.readouterr().out == ""


def test_what_cannot_be_used(artifact: Path, run_folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[type[Exception], str, object]] = [
        (UserError, "no run named 'nowhere' in runs/, and no artifact", lambda: load_trained("nowhere")),
        (UserError, "no run named 'nowhere' in runs/, no such artifact file or spec", lambda: load_audited("nowhere")),
        (UserError, "--set applies to a spec", lambda: load_audited(str(artifact), ["training.seed=1"])),
        (UserError, "packed weights only", lambda: load_trained(str(artifact), "trained")),
        (RunError, "it has no spec.toml", lambda: load_trained(str(tmp_path))),
        (UserError, "the numpy oracle cannot", lambda: invoke("audit", "tiny", "--engine", "numpy", "--full")),
        (UserError, "stride 33", lambda: invoke("score", str(artifact), "--engine", "numpy", "--stride", "33")),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()  # type: ignore[operator]


def test_a_run_named_like_a_preset_comes_first(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "tiny")
    assert load_audited("tiny", runs_dir=tmp_path).run is not None
    assert load_audited("tiny", ["training.seed=1"], runs_dir=tmp_path).weights_name == "random"
    assert load_audited("bytes", runs_dir=tmp_path).weights_name == "random"


def test_a_run_with_nothing_to_score(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "empty")
    run.path.mkdir()
    run.write_spec(SPEC)
    with pytest.raises(RunError, match=r"it has neither artifact\.btw nor a checkpoint yet"):
        load_trained(str(run.path))


def test_a_run_refuses_the_artifact_of_another_model(tmp_path: Path, artifact: Path) -> None:
    other: Spec = load_spec("tiny", ["model.num_layers=2"])
    run = RunDirectory(tmp_path / "mixed")
    run.path.mkdir()
    run.write_spec(other)
    artifact.rename(run.artifact_path)
    with pytest.raises(RunError, match="made for spec"):
        load_trained(str(run.path))


@pytest.mark.parametrize(
    ("passed", "measured", "text"),
    [(True, 2.19, "at least 1"), (False, 0.3, "at least 1"), (True, 0.3, "at most 1"), (False, 2.0, "at most 1")],
)
def test_a_limit_says_on_which_side_of_it_is_good(passed: bool, measured: float, text: str) -> None:
    assert limit_text(passed, measured, 1.0) == text and limit_text(True, 0.0, 0.0) == "at most 0"
