"""The scripts of a record, run where nothing but the packages that they name can be imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.folders import datasets_root
from shared.artifact import read_artifact
from shared.engine.oracle import Oracle
from shared.scoring.bits_per_byte import score_by_spec
from shared.script.build import scoring_script
from shared.spec import load_spec
from shared.standalone.score import open_text
from tests.command_line import CommandLine
from tests.fake_study import read_json
from tests.isolated import IsolatedPython, link_packages, requirements_of

# What counts, with room for what is to come.
MOST_TRAINING_BYTES, MOST_SCORING_BYTES = 120_000, 60_000


@pytest.mark.slow
def test_the_scripts_of_a_record_train_and_score_the_same_to_the_last_digit(
    trained: Path, tmp_path: Path, cli: CommandLine
) -> None:
    record = tmp_path / "record"
    assert cli("record", trained, "--output", record).status == 0
    train, score = record / "train.py", record / "score.py"
    assert train.stat().st_size <= MOST_TRAINING_BYTES and score.stat().st_size <= MOST_SCORING_BYTES
    assert set(requirements_of(score)) < set(requirements_of(train))
    link_packages(tmp_path / "packages", requirements_of(train))
    (tmp_path / "elsewhere").mkdir()
    python = IsolatedPython(tmp_path / "packages", tmp_path / "elsewhere")
    before, datasets = read_json(trained / "score.json"), str(datasets_root())

    again = json.loads(python(train, "train", "--name", "again", BYTETWIN_DATASETS=datasets))
    run = tmp_path / "elsewhere/runs/again"
    assert (run / "artifact.btw").read_bytes() == (trained / "artifact.btw").read_bytes()
    assert load_spec(run / "spec.toml") == load_spec(trained / "spec.toml")
    assert again == read_json(run / "score.json") == before
    # What is counted is this very file, where it runs as well as where it does not.
    submission = read_json(record / "submission.json")
    assert submission["bytes_code"] == again["code_bytes"] == train.stat().st_size
    assert submission["bytes_total"] == train.stat().st_size + (trained / "artifact.btw").stat().st_size

    artifact = record / "seed1337/artifact.btw"
    for words in ([score, artifact], [train, "score", artifact, "--data", Path(datasets) / "builtin"]):
        found = json.loads(python(*words, BYTETWIN_DATASETS=datasets))
        assert {name: found[name] for name in ("bpb", "nats", "bytes")} == {
            name: before[name] for name in ("bpb", "nats", "bytes")
        }
        assert found["artifact_sha256"] == before["artifact_sha256"]

    refused = python.run(score, tmp_path / "absent.btw", BYTETWIN_DATASETS=datasets)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "absent.btw" in refused.stderr


def test_an_artifact_is_scored_without_any_framework(trained: Path, tmp_path: Path) -> None:
    script, text = tmp_path / "score.py", tmp_path / "text.txt"
    script.write_bytes(scoring_script("numpy", load_spec("tiny")))
    text.write_bytes(bytes(range(32, 127)) * 3)
    link_packages(tmp_path / "packages", requirements_of(script))
    assert not (tmp_path / "packages/torch").exists() and not (tmp_path / "packages/mlx").exists()
    python = IsolatedPython(tmp_path / "packages", tmp_path)
    found = json.loads(python(script, trained / "artifact.btw", "--data", text))
    artifact = read_artifact(trained / "artifact.btw")
    expected = score_by_spec(Oracle(artifact.spec, artifact.weights), open_text(str(text), artifact.spec))
    assert (found["bpb"], found["nats"], found["bytes"]) == (expected.bpb, expected.nats, len(text.read_bytes()))
