"""Files of earlier versions, as they were written then, are read for ever (tests/golden/README.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.datasets import open_split, verify_dataset
from shared.artifact import read_artifact
from shared.cli.coding import load_codec
from shared.engine.oracle import Oracle
from shared.engine.protocol import Weights
from shared.runs.finished_run import read_finished
from shared.runs.metrics import Event, read_events
from shared.runs.run_directory import RunDirectory
from shared.runs.target import load_trained
from shared.scoring.bits_per_byte import score_by_spec
from shared.tolerances import LOSS_CURVE_ABS
from shared.training.run import earlier_result, train_run
from tests import ROOT
from tests.fake_training import RecordingObserver

GOLDEN = ROOT / "tests" / "golden"
RUNS = sorted(path.parent for path in GOLDEN.glob("*/*/spec.toml"))
ARTIFACTS = sorted(GOLDEN.glob("*/**/*.btw"))
CODED = sorted(GOLDEN.glob("*/coded/*.btz"))
DATASETS = sorted(path.parent for path in GOLDEN.glob("*/datasets/*/manifest.json"))
assert len(RUNS) >= 4 and len(ARTIFACTS) >= 5 and len(DATASETS) >= 2 and CODED, "golden files are missing"
# The float64 oracle of another processor adds in another order: 1e-16 each time, over some thousand additions.
ORACLE_REL = 1e-12


def name_of(path: Path) -> str:
    return path.relative_to(GOLDEN).as_posix()


every_run = pytest.mark.parametrize("folder", RUNS, ids=name_of)
every_artifact = pytest.mark.parametrize("path", ARTIFACTS, ids=name_of)


@pytest.fixture(autouse=True)
def _golden_datasets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets are those beside the files."""
    values = request.node.callspec.params
    path: Path = values.get("folder") or values["path"]
    monkeypatch.setenv("BYTETWIN_DATASETS", str(GOLDEN / path.relative_to(GOLDEN).parts[0] / "datasets"))


def checksum(weights: Weights) -> str:
    """SHA-256 over the names, in order, and float32 values of tensors."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + b"\n" + np.ascontiguousarray(weights[name], "<f4").tobytes())
    return digest.hexdigest()


def artifact_facts(path: Path) -> dict[str, Any]:
    """What an artifact holds, and the oracle's bits per byte on the held-out text of its spec."""
    artifact, chosen = read_artifact(path), load_trained(str(path)).chosen
    widths = [tensor.storage.bits for tensor in artifact.tensors.values()]
    stream = open_split(artifact.spec.data.heldout, "heldout", artifact.spec.vocabulary)
    return {
        "weights_sha256": checksum(artifact.weights),
        "parameters": artifact.info.parameters,
        "chosen_step": chosen.step if chosen else None,
        "tensors_by_bits": {str(bits): widths.count(bits) for bits in (6, 8, 32)},
        "oracle_bpb": score_by_spec(Oracle(artifact.spec, artifact.weights), stream).bpb,
    }


def run_facts(folder: Path) -> dict[str, Any]:
    """What the last checkpoint of a run holds, and the oracle's bits per byte of its average."""
    target = load_trained(str(folder), "averaged")
    stream = open_split(target.spec.data.heldout, "heldout", target.spec.vocabulary)
    return {
        "trained_sha256": checksum(load_trained(str(folder), "trained").weights),
        "averaged_bpb": score_by_spec(Oracle(target.spec, target.weights), stream).bpb,
    }


def loss_of(step: Event) -> float:
    """Nats per symbol of an event, under the name of today or that of the first files."""
    return float(step["nats_per_symbol"] if "nats_per_symbol" in step else step["nats"])


def expected(path: Path) -> dict[str, Any]:
    date, name = name_of(path).split("/", 1)
    values: dict[str, Any] = json.loads((GOLDEN / date / "expected.json").read_text(encoding="utf-8"))[name]
    return values


@every_artifact
def test_an_artifact_unpacks_to_the_same_weights_and_scores_as_it_did(path: Path) -> None:
    found, then = artifact_facts(path), expected(path)
    assert found.pop("oracle_bpb") == pytest.approx(then.pop("oracle_bpb"), rel=ORACLE_REL)
    assert found == then


@every_run
def test_a_checkpoint_has_the_same_weights_and_average(folder: Path) -> None:
    found, then = run_facts(folder), expected(folder)
    assert found.pop("averaged_bpb") == pytest.approx(then.pop("averaged_bpb"), rel=ORACLE_REL)
    assert found == then


@every_run
def test_a_finished_run_is_read_as_a_comparison_reads_it(folder: Path) -> None:
    run, score = read_finished(RunDirectory(folder)), json.loads((folder / "score.json").read_text())
    assert run.score.to_dict() == score and run.spec.name == score["spec_name"]
    assert run.documents is not None and run.problems == []
    result, lines = earlier_result(run), (folder / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert run.steps == result.outcome.step == events[-1]["step"] and result.exit_status == 0
    assert result.outcome.nats == [loss_of(event) for event in events if event["event"] == "step"][-1]
    assert result.outcome.validation is not None and result.outcome.checkpoint is not None


@pytest.mark.parametrize("path", CODED, ids=name_of)
def test_a_coded_file_gives_its_text_back(path: Path) -> None:
    """It names the run whose artifact coded it, beside which the text lies."""
    _, codec = load_codec(str(path.parent.parent / path.stem / "artifact.btw"), "numpy", runs_dir=path.parent)
    _, text = codec.decompress(path.read_bytes())
    assert text == (path.parent / "text.bin").read_bytes()


@pytest.mark.parametrize("path", DATASETS, ids=name_of)
def test_a_dataset_is_whole(path: Path) -> None:
    assert verify_dataset(path.name) == []


@pytest.mark.parametrize("engine", ["mlx", "torch"])
@pytest.mark.parametrize("folder", [folder for folder in RUNS if folder.name == "bytes"], ids=name_of)
def test_a_run_is_resumed_from_its_first_checkpoint_and_ends_where_it_did(
    folder: Path, engine: str, tmp_path: Path
) -> None:
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    for path in [*copy.glob("checkpoints/step-00000004.*"), copy / "artifact.btw", copy / "score.json"]:
        path.unlink()
    spec = RunDirectory(copy).read_spec()
    result = train_run(spec, engine, RecordingObserver(), runs_dir=tmp_path, run_name=copy.name, resume=True)
    assert result.exit_status == 0 and result.finished is not None
    then, now = (
        {event["step"]: loss_of(event) for event in read_events(path / "metrics.jsonl") if event["event"] == "step"}
        for path in (folder, copy)
    )
    assert now.keys() == then.keys() and [now[1], now[2]] == [then[1], then[2]]
    assert all(abs(now[step] - then[step]) <= LOSS_CURVE_ABS for step in then)
    assert abs(result.finished.score.bpb - json.loads((folder / "score.json").read_text())["bpb"]) <= LOSS_CURVE_ABS
