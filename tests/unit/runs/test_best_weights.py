"""The best weights of a run: those with the best validation, which a score and an artifact say that they are."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.artifact import write_artifact
from shared.engine.state import split_state
from shared.errors import ArtifactError, RunError
from shared.model import model_weights
from shared.ops import NumpyOps
from shared.optim import averaged_weights
from shared.runs.checkpoints import CheckpointStore, signed
from shared.runs.target import CHOSEN_KEY, load_trained
from shared.spec import load_spec
from tests.command_line import CommandLine
from tests.fake_study import edited

pytestmark = pytest.mark.slow


def make_best(run: Path, step: int) -> dict[str, np.ndarray]:
    """Say that the checkpoint of a step had the best validation; returns the average that was validated there."""
    with edited(run / "checkpoints" / f"step-{step:08d}.json") as values:
        values["last_validation"]["bpb"] = 1.25
        values.update(signed(values))
    checkpoint = CheckpointStore(run / "checkpoints", 3).load_best()
    assert checkpoint is not None and checkpoint.info.step == step
    spec = load_spec(run / "spec.toml")
    trained, state = split_state(spec, checkpoint.state)
    return model_weights(spec, averaged_weights(NumpyOps(), spec.training, trained, state))


@pytest.mark.parametrize("step", [2, 6])
def test_the_best_weights_can_be_scored_and_packed(run: Path, tmp_path: Path, cli: CommandLine, step: int) -> None:
    expected = make_best(run, step)
    loaded = load_trained(str(run), "best").weights
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(loaded[name], value) for name, value in expected.items())
    chosen = {"step": step, "bpb": 1.25, "dataset": "toy"}
    warned = f"the weights of step {step}, chosen by held-out text of toy (1.2500 bits per byte on a sample), which"
    done = cli("score", run, "--weights", "best", "--json")
    score = done.document
    assert done.status == 0 and (score["weights"], score["chosen"], score["artifact_bytes"]) == ("best", chosen, None)
    assert warned in done.told
    artifact = tmp_path / "best.btw"
    done = cli("pack", run, "--weights", "best", "--output", artifact, "--json")
    assert done.status == 0 and warned in done.told and done.document["chosen"] == chosen
    # The artifact remembers, so that no score of it looks like that of a run.
    done = cli("score", artifact, "--engine", "mlx", "--json")
    packed = done.document
    assert (packed["weights"], packed["chosen"]) == ("packed", chosen) and warned in done.told
    assert packed["artifact_sha256"] == hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert abs(packed["bpb"] - score["bpb"]) < 0.05


def test_a_run_without_validated_checkpoints_has_no_best(run: Path, cli: CommandLine) -> None:
    for path in (run / "checkpoints").glob("*.json"):
        with edited(path) as values:
            values["last_validation"] = None
            values.update(signed(values))
    done = cli("score", run, "--weights", "best")
    assert done.status == 2 and "none of its checkpoints was validated" in done.told
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="nor a checkpoint yet"):
        load_trained(str(run), "best")


@pytest.mark.parametrize("extra", ["no", {"step": -1, "bpb": 1.0, "dataset": "toy"}, {"step": 1}])
def test_an_artifact_that_lies_about_its_choice_is_refused(run: Path, tmp_path: Path, extra: Any) -> None:
    target = load_trained(str(run), "averaged")
    write_artifact(tmp_path / "odd.btw", target.spec, target.weights, {CHOSEN_KEY: extra})
    with pytest.raises(ArtifactError, match=r"extra\.chosen must be a step"):
        load_trained(str(tmp_path / "odd.btw"))
