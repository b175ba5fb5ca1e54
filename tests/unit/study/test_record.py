"""`bytetwin record`: finished runs become a folder whose figures are theirs, or nothing."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.cli.main import main
from shared.scoring.confidence import student_quantile
from shared.spec import load_spec
from shared.study import record
from shared.training.run import train_run
from tests.fake_study import copy_run
from tests.fake_training import quiet_observer, tiny_spec

SHORT = ("training.steps=6", "evaluation.val_symbols=1024", "evaluation.batch_symbols=16384")
# The field names that most of the public records share.
PUBLIC_FIELDS = {
    "author",
    "github_id",
    "name",
    "blurb",
    "date",
    "val_loss",
    "val_bpb",
    "val_bpb_std",
    "seeds",
    "seed_results",
    "bytes_total",
    "bytes_code",
    "hardware",
    "pytorch_version",
    "compliance",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the real thing, with seed 1337."""
    runs = tmp_path_factory.mktemp("runs")
    result = train_run(tiny_spec(*SHORT), "torch", quiet_observer(), runs_dir=runs, run_name="first")
    assert result.exit_status == 0
    return runs / "first"


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def another(trained: Path, folder: Path, *overrides: str, bpb: float | None = None) -> Path:
    """A copy of the run as another seed would have left it, with another score."""
    before = json.loads((trained / "score.json").read_text())["bpb"]
    return copy_run(trained, folder, *overrides, factor=(bpb or before) / before)


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    status = main(["record", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line of a command that must end with status 2."""
    status, _, errors = call(capsys, *words)
    assert status == 2 and errors.count("\n") == 1, errors
    return errors


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_run_becomes_a_folder_that_holds_everything(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "records" / "one"
    status, printed, _ = call(
        capsys, "--json", trained, "--output", out, "--author", "A", "--github", "a-b", "--title", "T"
    )
    document = json.loads(printed)
    assert status == 0 and document["folder"] == str(out)
    assert names(out) == [
        "README.md",
        *[f"seed1337/{name}" for name in sorted(set(record.KEPT_FILES) - {"preflight.json"})],
        "spec.toml",
        "submission.json",
    ]
    assert (out / "seed1337/artifact.btw").read_bytes() == (trained / "artifact.btw").read_bytes()
    submission = json.loads((out / "submission.json").read_text())
    assert submission == document["submission"] and submission.keys() >= PUBLIC_FIELDS
    score = json.loads((trained / "score.json").read_text())
    assert submission["val_bpb"] == score["bpb"] and submission["val_bpb_std"] is None
    assert submission["val_loss"] == score["nats"] / score["symbols"]
    assert submission["bytes_total"] == (trained / "artifact.btw").stat().st_size + score["code_bytes"]
    assert (submission["author"], submission["github_id"], submission["name"]) == ("A", "a-b", "T")
    assert submission["seed_results"]["1337"]["steps"] == 6
    assert submission["compliance"]["artifact_under_16mb"] and not submission["compliance"]["three_seeds"]
    text = (out / "README.md").read_text()
    assert f"**{score['bpb']:.4f} bits per byte** (one seed)" in text and text.startswith("# T\n")
    # The record's own folders can be scored and audited like runs.
    assert f"bytetwin score seed1337/{trained.name}" not in text and "bytetwin score seed1337/artifact.btw" in text
    assert load_spec(out / "spec.toml") == load_spec(trained / "spec.toml")


def test_several_seeds_give_mean_and_deviation(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        another(trained, tmp_path / f"run{seed}", f"training.seed={seed}", bpb=bpb)
        for seed, bpb in ((314, 6.25), (42, 6.5), (999, 6.0))
    ]
    (runs[1] / "preflight.json").write_text('{"go": true, "forced": ["disk"], "risks": ["artifact_bytes"]}')
    assert call(capsys, *runs, "--output", tmp_path / "out")[0] == 0
    submission = json.loads((tmp_path / "out/submission.json").read_text())
    assert submission["seeds"] == [42, 314, 999] and list(submission["seed_results"]) == ["42", "314", "999"]
    assert submission["val_bpb"] == pytest.approx(6.25, rel=1e-12)
    assert submission["val_bpb_std"] == pytest.approx(0.25, rel=1e-12)
    assert submission["compliance"]["three_seeds"]
    text = (tmp_path / "out/README.md").read_text()
    half = student_quantile(0.995, 2) * 0.25 / math.sqrt(3)
    assert "(mean of 3 seeds, standard deviation 0.2500, " in text
    assert f"99% interval of the mean {6.25 - half:.4f} to {6.25 + half:.4f})" in text
    assert "preflight said go (preflight.json), at risk: artifact_bytes, overridden by hand: disk" in text
    assert (tmp_path / "out/seed42/preflight.json").exists() and not (tmp_path / "out/seed314/preflight.json").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.seed=2", "optimizer.matrix_lr=0.5"], "has optimizer.matrix_lr = "),
        (["training.seed=2", "evaluation.stride_symbols=32"], "has evaluation.stride_symbols = "),
        ([], "have the same seed 1337"),
    ],
)
def test_runs_that_are_not_one_experiment(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    other = another(trained, tmp_path / "other", *overrides)
    assert message in refused(capsys, trained, other, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_on_different_text_are_not_averaged(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = another(trained, tmp_path / "other", "training.seed=2")

    def change(values: dict[str, Any]) -> None:
        values["dataset"]["sha256"] = values["dataset"]["scored_sha256"] = "0" * 64

    edit_json(other / "score.json", change)
    assert "were scored on different text" in refused(capsys, trained, other, "--output", tmp_path / "out")


def test_runs_on_different_training_text_are_no_record(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text counts, its name does not."""
    other = another(trained, tmp_path / "other", "training.seed=2")
    edit_json(other / "environment.json", lambda values: values["data"]["train"].update(sha256="0" * 64))
    old = json.loads((trained / "environment.json").read_text())["data"]["train"]["sha256"][:16]
    message = refused(capsys, trained, other, "--output", tmp_path / "out")
    assert f"{trained} was trained on builtin with sha256 {old}, {other} on builtin with {'0' * 16}" in message
    assert not (tmp_path / "out").exists()
    renamed = another(trained, tmp_path / "renamed", "training.seed=2", "data.train=copy")
    assert call(capsys, trained, renamed, "--output", tmp_path / "out")[0] == 0
    edit_json(renamed / "environment.json", lambda values: values.pop("data"))
    assert "no data.train.sha256" in refused(capsys, trained, renamed, "--output", tmp_path / "other-out")


def test_an_unfinished_run_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (trained / "metrics.jsonl").read_text().splitlines(keepends=True)
    unscored = another(trained, tmp_path / "unscored")
    (unscored / "metrics.jsonl").write_text("".join(line for line in lines if '"finished"' not in line))
    resumed = another(trained, tmp_path / "resumed")
    step = next(line for line in lines if '"event": "step"' in line)
    (resumed / "metrics.jsonl").write_text("".join([*lines, step]))
    empty = tmp_path / "empty"
    shutil.copytree(trained, empty, ignore=shutil.ignore_patterns("score.json", "artifact.btw"))
    for run in (unscored, resumed, empty):
        message = refused(capsys, run, "--output", tmp_path / "out")
        assert f"{run}: not finished" in message and f"--run {run.name} --resume" in message
    assert "no run named" in refused(capsys, tmp_path / "absent")
    assert "not a run directory" in refused(capsys, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_score_of_another_artifact_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = another(trained, tmp_path / "other")
    edit_json(other / "score.json", lambda values: values.update(artifact_bytes=values["artifact_bytes"] + 1))
    assert "the score is not that of artifact.btw" in refused(capsys, other, "--output", tmp_path / "out")


def test_over_the_budget_or_a_failed_audit_is_status_1_and_no_folder(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heavy = another(trained, tmp_path / "heavy")
    edit_json(heavy / "score.json", lambda values: values.update(limit_bytes=1000))
    status, _, errors = call(capsys, heavy, "--output", tmp_path / "out")
    assert status == 1 and "no record: " in errors and "the limit is 1,000" in errors
    leaky = another(trained, tmp_path / "leaky")

    def fail(values: dict[str, Any]) -> None:
        values["audit"]["passed"] = values["audit"]["checks"][0]["passed"] = False

    edit_json(leaky / "score.json", fail)
    status, printed, errors = call(capsys, "--json", leaky, "--output", tmp_path / "out")
    assert status == 1 and "audit: future: " in errors
    assert json.loads(printed)["folder"] is None and len(json.loads(printed)["problems"]) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_is_replaced_only_if_asked_and_only_a_record(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(capsys, trained, "--output", out)[0] == 0
    assert "exists; --replace overwrites it" in refused(capsys, trained, "--output", out)
    (out / "stale").touch()
    assert call(capsys, trained, "--output", out, "--replace")[0] == 0
    assert not (out / "stale").exists() and (out / "submission.json").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    assert "is not a record" in refused(capsys, trained, "--output", mine, "--replace")
    assert names(mine) == ["thesis.txt"] and sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_failure_in_the_middle_leaves_the_old_record(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert call(capsys, trained, "--output", out)[0] == 0
    before = {name: (out / name).read_bytes() for name in names(out)}

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(record.shutil, "copyfile", full)
    assert "no space left on device" in refused(capsys, trained, "--output", out, "--replace")
    assert {name: (out / name).read_bytes() for name in names(out)} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_finished_run_is_not_trained_again(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "tiny", "--runs-dir", str(trained.parent), "--run", trained.name, "--resume", "--json"]
    for override in ("training.compile=false", *SHORT):
        words += ["--set", override]
    before = {name: (trained / name).stat().st_mtime_ns for name in names(trained)}
    assert main([*words, "--ranks", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "finished" and document["steps"] == 6
    assert document["score"] == json.loads((trained / "score.json").read_text())
    assert {name: (trained / name).stat().st_mtime_ns for name in names(trained)} == before
    # Another spec under the same name is not taken for it.
    assert main([*words, "--engine", "torch", "--set", "training.seed=5"]) == 2
    assert "training.seed = 1337, now it is 5" in capsys.readouterr().err


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.5, 10.0), min_size=1, max_size=8))
def test_the_deviation_has_one_degree_of_freedom_less(values: list[float]) -> None:
    found = record.deviation(values)
    if len(values) == 1:
        assert found is None
    else:
        mean = statistics.fmean(values)
        expected = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
