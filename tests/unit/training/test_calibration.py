"""Calibration where models are packed: at the end of a run, on several ranks, in `pack` and `soup`; and in audits."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from data.making import make_missing
from shared.artifact import read_artifact, write_artifact
from shared.artifact.calibration import CALIBRATION_KEY, CalibrationRecord
from shared.engine.leader import LeadingEngine, follow
from shared.engine.package import create_engine
from shared.model import random_weights
from shared.quantisers import InputStatistics
from shared.runs.target import load_trained
from shared.scoring.document import read_score
from shared.training.calibration import TASKS, calibrate_engine
from shared.training.run import train_run
from shared.training.sources import open_training_text
from tests.command_line import CommandLine
from tests.fake_study import events_of
from tests.fake_training import SHORT, RecordingObserver, tiny_spec
from tests.unit.engine.test_leader import ThreadRanks

pytestmark = pytest.mark.slow

SETTINGS = (
    "artifact.matrix.rounding='gptq'",
    "artifact.calibration.windows=4",
    "artifact.calibration.window_symbols=32",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs `self` and `train`, by the source of their calibration; the second has fitted logits too."""
    make_missing("builtin")
    folder = tmp_path_factory.mktemp("runs")
    for source in ("self_generated", "train"):
        logits = "temperature_bias" if source == "train" else "none"
        settings = (f"artifact.calibration.source='{source}'", f"artifact.logits='{logits}'")
        spec = tiny_spec(*SHORT, *SETTINGS, *settings)
        observer = RecordingObserver()
        result = train_run(spec, "mlx", observer, runs_dir=folder, run_name=source.split("_")[0])
        assert result.exit_status == 0, result.finished
        phases = observer.named("phase")
        assert phases[phases.index("packing") - 1] == "calibration" and result.phase_s["calibration"] > 0.0
        assert ("fitting logits" in phases) == (logits != "none")
    return folder


def record_in(path: Path) -> CalibrationRecord:
    return CalibrationRecord.model_validate(read_artifact(path).header["extra"][CALIBRATION_KEY])


@pytest.mark.parametrize(("name", "says"), [("self", "written by the model itself"), ("train", "of builtin/train")])
def test_a_run_says_what_it_was_calibrated_on(runs: Path, name: str, says: str) -> None:
    record = record_in(runs / name / "artifact.btw")
    assert (record.windows, record.window_symbols) == (4, 32)
    (event,) = events_of(runs / name, "calibration")
    assert event["seconds"] > 0.0 and event["symbols_hash"] == record.symbols_hash
    (check,) = [check for check in read_score(runs / name / "score.json").audit.checks if check.name == "calibration"]
    assert check.passed and says in check.detail and "occur in builtin/heldout" in check.detail


@pytest.mark.parametrize(("name", "says"), [("self", "as the artifact says"), ("train", "occur in builtin/heldout")])
def test_an_audit_of_the_run_takes_training_windows_again(runs: Path, cli: CommandLine, name: str, says: str) -> None:
    words = ("audit", runs / name, "--max-symbols", "600", "--engine", "numpy")
    (check,) = [check for check in cli.document(*words)["checks"] if check["name"] == "calibration"]
    assert check["passed"] and says in check["detail"]


def test_logits_are_fitted_at_the_end_of_a_run_and_by_pack(runs: Path, cli: CommandLine, tmp_path: Path) -> None:
    artifact = read_artifact(runs / "train" / "artifact.btw")
    assert artifact.weights["logits.temperature"][0] != 1.0 and artifact.weights["logits.bias"].shape == (256,)
    (event,) = events_of(runs / "train", "logits")
    record = artifact.header["extra"]["logits"]
    assert event["symbols_hash"] == record["symbols_hash"] and record["window_symbols"] == artifact.spec.model.seq_len
    (check,) = [check for check in read_score(runs / "train/score.json").audit.checks if check.name == "logits"]
    assert check.passed and "occur in builtin/heldout" in check.detail
    words = ("audit", runs / "train", "--max-symbols", "600", "--engine", "numpy")
    (check,) = [check for check in cli.document(*words)["checks"] if check["name"] == "logits"]
    assert check["passed"] and "occur in builtin/heldout" in check["detail"]
    # `pack` makes the artifact of the run to the byte; the oracle, another engine, a value or two a step apart.
    for engine, apart in (("mlx", 0.0), ("numpy", 1.0 / 64)):
        path = tmp_path / f"{engine}.btw"
        done = cli("pack", runs / "train", "--engine", engine, "--output", path, "--json")
        assert "logits fitted on 4 windows of" in done.told and done.document["logits"] == record
        bias = read_artifact(path).weights["logits.bias"] - artifact.weights["logits.bias"]
        assert np.abs(bias).max() <= apart and np.count_nonzero(bias) <= 4
        assert engine != "mlx" or path.read_bytes() == (runs / "train/artifact.btw").read_bytes()
    assert cli("generate", tmp_path / "numpy.btw", "--engine", "numpy", "--bytes", "8").status == 0


def test_pack_calibrates_on_any_engine_and_says_so(runs: Path, cli: CommandLine, tmp_path: Path) -> None:
    packed = {}
    for engine in ("numpy", "mlx", "torch"):
        path = tmp_path / f"{engine}.btw"
        done = cli("pack", runs / "self", "--engine", engine, "--output", path, "--json")
        assert done.status == 0 and "calibrated on 4 windows of 32 symbols, written by" in done.told
        packed[engine] = done.document["calibration"]
        assert packed[engine] == record_in(path).model_dump(exclude_none=True)
    # Every engine wrote the text that the end of the run did.
    of_run = record_in(runs / "self" / "artifact.btw").model_dump(exclude_none=True)
    assert all(each == of_run for each in packed.values())


def test_a_soup_is_calibrated(runs: Path, cli: CommandLine, tmp_path: Path) -> None:
    spec = load_trained(str(runs / "self")).spec
    train_run(spec, "mlx", RecordingObserver(), runs_dir=tmp_path, run_name="other", finish=False)
    output = tmp_path / "soup.btw"
    words = ("soup", runs / "self", tmp_path / "other", "--output", output, "--max-symbols", "600", "--engine", "numpy")
    checks = {check["name"]: check for check in cli.document(*words)["score"]["audit"]["checks"]}
    assert record_in(output).windows == 4 and checks["calibration"]["passed"]


def test_ranks_of_a_run_calibrate_together() -> None:
    make_missing("builtin")
    for source in ("self_generated", "train"):
        spec = tiny_spec(*SETTINGS, f"artifact.calibration.source='{source}'", "training.compile=false")
        text = open_training_text(spec)
        slots, barrier = [None] * 2, threading.Barrier(2)
        alone, first, follower = (create_engine("mlx", spec) for _ in range(3))
        first.ranks, follower.ranks = (ThreadRanks(rank, 2, slots, barrier) for rank in range(2))
        leader = LeadingEngine(first)
        thread = threading.Thread(target=follow, args=(follower, TASKS))
        thread.start()
        weights = random_weights(spec, 0)
        alone.initialise(weights)
        leader.initialise(weights)
        found = calibrate_engine(leader, text, lambda done, total: None).calibration
        leader.dismiss()
        thread.join()
        expected = calibrate_engine(alone, text, lambda done, total: None).calibration
        assert found.record == expected.record
        np.testing.assert_array_equal(found.windows, expected.windows)
        name = "layers.0.mlp.down_proj.weight"
        assert found.statistics[name].rows == expected.statistics[name].rows


def test_an_artifact_that_does_not_say_is_refused(runs: Path, cli: CommandLine, tmp_path: Path) -> None:
    target = load_trained(str(runs / "self"))
    write_artifact(
        tmp_path / "silent.btw", target.spec, target.weights, None, {name: InputStatistics() for name in target.weights}
    )
    done = cli("audit", tmp_path / "silent.btw", "--max-symbols", "600", "--engine", "numpy", "--json")
    failed = [check["name"] for check in done.document["checks"] if not check["passed"]]
    assert done.status == 1 and failed == ["calibration"]
