"""A run, its artifact and its score stay one thing: what may replace which, and how a run that fell apart is mended."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.artifact import read_artifact, write_artifact
from shared.runs.metrics import last_ending, read_events
from shared.runs.target import load_trained
from shared.scoring.document import read_score
from shared.scoring.documents import read_document_scores
from shared.scoring.resume import ScoreState
from shared.spec import Spec, load_spec, with_overrides
from shared.training.run import train_run
from tests.command_line import CommandLine
from tests.fake_study import edited
from tests.fake_training import RecordingObserver

pytestmark = pytest.mark.slow


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "words",
    [["--set", "artifact.matrix.bits=8"], ["--weights", "best"], ["--weights", "trained"]],
)
def test_another_artifact_needs_a_file_of_its_own(
    run: Path, tmp_path: Path, cli: CommandLine, words: list[str]
) -> None:
    before = snapshot(run)
    for more in ([], ["--output", run / "artifact.btw"], ["--output", run / ".." / "run" / "artifact.btw"]):
        done = cli("pack", run, *words, *more)
        assert (
            done.status == 2 and done.told.startswith("bytetwin: ") and "needs --output with another file" in done.told
        )
    assert snapshot(run) == before
    assert cli("pack", run, *words, "--output", tmp_path / "new.btw").status == 0
    assert (tmp_path / "new.btw").read_bytes() != before["artifact.btw"] and snapshot(run) == before


def test_the_artifact_of_another_run_is_not_replaced(run: Path, tmp_path: Path, cli: CommandLine) -> None:
    shutil.copytree(run, tmp_path / "other")
    before = snapshot(tmp_path / "other")
    done = cli("pack", run, "--output", tmp_path / "other" / "artifact.btw")
    assert done.status == 2 and f"is the artifact of run {tmp_path / 'other'}" in done.told
    assert snapshot(tmp_path / "other") == before


def test_a_soup_does_not_replace_the_artifact_of_a_run(run: Path, tmp_path: Path, cli: CommandLine) -> None:
    before = snapshot(run)
    done = cli("soup", run, shutil.copytree(run, tmp_path / "twin"), "--output", run / "artifact.btw")
    assert done.status == 2 and "is the artifact of run" in done.told and snapshot(run) == before


def test_packing_as_the_run_does_changes_nothing(run: Path, cli: CommandLine) -> None:
    before = snapshot(run)
    done = cli("pack", run, "--json")
    assert done.status == 0 and "bytetwin score" not in done.told and snapshot(run) == before
    assert done.document["sha256"] == read_score(run / "score.json").artifact_sha256
    # Of codes alone: float32 values have none.
    assert set(done.document["entropy_bits_per_weight"]) == {"matrix", "embedding"}


def test_the_run_packs_with_the_settings_of_its_last_start(run: Path, cli: CommandLine) -> None:
    """A resumed run may have other settings of the artifact than its checkpoints."""
    text = (run / "spec.toml").read_text()
    assert "bits = 6" in text
    (run / "spec.toml").write_text(text.replace("bits = 6", "bits = 8"))
    done = cli("pack", run)
    assert done.status == 0 and f"`bytetwin score {run}` scores this one" in done.told
    assert read_artifact(run / "artifact.btw").spec.artifact.matrix.bits == 8


def test_a_run_that_fell_apart_is_mended(run: Path, tmp_path: Path, cli: CommandLine) -> None:
    before, spec = snapshot(run), load_spec(run / "spec.toml")
    # As `pack RUN --set` of older versions left it, then as a change of one weight that keeps the size.
    write_artifact(
        run / "artifact.btw",
        with_overrides(spec, ["artifact.matrix.bits=8"]),
        load_trained(str(run), "averaged").weights,
    )
    for command in (["record", run, "--output", tmp_path / "record"], ["compare", run]):
        done = cli(*command)
        assert done.status == 2 and f"`bytetwin pack {run}` and, if that says so, `bytetwin score {run}`" in done.told
    # A score of what lies there is not that of the run.
    done = cli("score", run)
    assert done.status == 0 and "artifact.btw is not as the run packs it" in done.told
    assert (run / "score.json").read_bytes() == before["score.json"]
    assert cli("pack", run).status == 0
    assert snapshot(run) == before
    assert cli("record", run, "--output", tmp_path / "record").status == 0


def test_a_new_artifact_of_the_run_is_scored_into_it(run: Path, tmp_path: Path, cli: CommandLine) -> None:
    """Packing may change with the program: the size is the same here, the hash is not."""
    spec, score = load_spec(run / "spec.toml"), read_score(run / "score.json")
    weights = load_trained(str(run), "averaged").weights
    (name, scalar) = next((name, value) for name, value in weights.items() if value.size < 64)
    weights[name] = scalar + np.float32(0.25)
    write_artifact(run / "artifact.btw", spec, weights)
    with edited(run / "score.json") as values:
        values["artifact_bytes"] = (run / "artifact.btw").stat().st_size
    done = cli("compare", run)
    assert done.status == 2 and "packed again; repair it with" in done.told
    done = cli("score", run, "--json")
    assert done.status == 0 and f"score {run / 'score.json'}" in done.told
    found = read_score(run / "score.json")
    assert found.to_dict() == done.document
    assert found.artifact_sha256 == hashlib.sha256((run / "artifact.btw").read_bytes()).hexdigest()
    assert found.bpb != score.bpb and found.compressors == score.compressors
    # What belongs to the score moved with it.
    documents = read_document_scores(
        run / "documents.safetensors", documents=found.documents, num_bytes=found.bytes, nats=found.nats
    )
    assert documents is not None
    ending = last_ending(read_events(run / "metrics.jsonl"))
    assert ending is not None and ending["bpb"] == found.bpb and ending["packing"]["limit_bpb"] == 0.01
    assert f"{found.bpb:.4f} bits per byte" in (run / "report.html").read_text()
    assert cli("compare", run).status == 0
    assert cli("record", run, "--output", tmp_path / "record").status == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--stride", "16"], "the run is scored with a stride of 64"),
        (["--max-symbols", "300"], "of a sample of the text"),
        (["--data", "other"], "it is of other/heldout, the run is scored on toy"),
        (["--weights", "averaged"], "of the averaged weights"),
        (["--weights", "best"], "of the best weights"),
        (["--engine", "numpy"], "it is by numpy, the run is one of mlx"),
    ],
)
def test_any_other_score_is_kept_only_where_it_is_told(
    run: Path, tmp_path: Path, cli: CommandLine, words: list[str], reason: str
) -> None:
    before = snapshot(run)
    done = cli("score", run, *words)
    assert done.status == 0 and f"not written to {run / 'score.json'}: " in done.told and reason in done.told
    done = cli("score", run, *words, "--output", tmp_path / "new.json", "--json")
    assert done.status == 0 and "not written" not in done.told
    assert read_score(tmp_path / "new.json").to_dict() == done.document
    assert snapshot(run) == before


def test_an_unfinished_run_or_another_text_keeps_its_score(run: Path, cli: CommandLine) -> None:
    before = (run / "score.json").read_bytes()
    with edited(run / "environment.json") as environment:
        heldout = environment["data"]["heldout"]["sha256"]
        environment["data"]["heldout"]["sha256"] = "0" * 64
    assert "toy/heldout is not the text it was when the run began" in cli("score", run).told
    with edited(run / "environment.json") as environment:
        environment["data"]["heldout"]["sha256"] = heldout
        environment["data"]["train"]["sha256"] = "0" * 64
    assert "the text that it was trained on is not there to compare with" in cli("score", run).told
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if '"finished"' not in line))
    assert "the run is not finished" in cli("score", run).told
    assert (run / "score.json").read_bytes() == before


def forget_figures(root: Path) -> None:
    for path in (root / "datasets").glob("*/compressors*"):
        path.unlink()


def test_a_score_does_not_wait_for_compressors(root: Path, run: Path, spec: Spec, cli: CommandLine) -> None:
    """Of a dataset without figures they are measured after the score is written; a signal then costs only them."""
    runs, text = run.parent, "datasets/toy/compressors*.json"
    seen: dict[str, Any] = {}

    def watch(name: str, step: int) -> None:
        if name == "compressors":
            seen["score"] = read_score(runs / "new" / "score.json")
            seen["report"] = (runs / "new" / "report.html").exists()
            os.kill(os.getpid(), signal.SIGTERM)

    forget_figures(root)
    observer = RecordingObserver(watch)
    result = train_run(spec, "mlx", observer, runs_dir=runs, run_name="new")
    assert observer.named("phase")[-3:] == ["audit", "report", "compressors"]
    assert seen["report"] and seen["score"].compressors == {}
    assert (result.exit_status, result.outcome.status) == (143, "interrupted") and result.finished is not None
    assert result.outcome.message == "the run is finished, its score lacks the general compressors"
    assert read_score(runs / "new" / "score.json") == seen["score"] == result.finished.score
    assert not list(root.glob(text))
    # It counts as finished, and the next score completes it.
    done = cli("record", runs / "new", "--output", runs / "record", "--json")
    assert done.status == 0 and "general compressors" not in (runs / "record" / "README.md").read_text()
    done = cli("score", runs / "new")
    assert done.status == 0 and "brotli -11: " in done.out
    assert set(read_score(runs / "new" / "score.json").compressors) == {"xz -9", "zstd -19", "brotli -11"}
    assert len(list(root.glob(text))) == 1
    # From now on they are known.
    observer = RecordingObserver()
    result = train_run(spec, "mlx", observer, runs_dir=runs, run_name="newer")
    assert "compressors" not in observer.named("phase") and result.finished is not None
    assert len(result.finished.score.compressors) == 3


def test_missing_figures_are_measured_at_the_end(root: Path, run: Path, spec: Spec) -> None:
    forget_figures(root)
    observer = RecordingObserver()
    result = train_run(spec, "mlx", observer, runs_dir=run.parent, run_name="new")
    assert result.exit_status == 0 and observer.named("phase")[-1] == "compressors"
    assert result.finished is not None and len(result.finished.score.compressors) == 3
    assert read_score(run.parent / "new" / "score.json") == result.finished.score
    assert "brotli -11" in (run.parent / "new" / "report.html").read_text()
    assert "compressors" in result.phase_s


def damage(run: Path, step: int) -> None:
    """Change a number in a checkpoint's JSON."""
    path = run / "checkpoints" / f"step-{step:08d}.json"
    path.write_text(path.read_text().replace('"elapsed_s": ', '"elapsed_s": 1'))


def test_a_damaged_newest_checkpoint_is_said_and_step_chooses(run: Path, tmp_path: Path, cli: CommandLine) -> None:
    """By every command that reads checkpoints, and neither in the artifact's silence nor in that of --json."""
    out = ("--output", tmp_path / "out.btw")
    assert cli.document("pack", run, *out)["step"] == 6
    (run / "artifact.btw").unlink()
    damage(run, 6)
    twin = shutil.copytree(run, tmp_path / "twin")
    short = ("--engine", "numpy", "--max-symbols", "128")
    for command, *words in (
        ("pack", *out),
        ("score", *short),
        ("audit", *short),
        ("generate", "--engine", "numpy", "--bytes", "2"),
        ("soup", twin, *out, *short),
    ):
        done = cli(command, run, *words)
        assert done.status in (0, 1), done.err
        where = "step-00000006.safetensors is damaged (the SHA-256 of its JSON file differs from the recorded one)"
        assert f"{where}; the weights are those of step 4; --step N chooses" in done.told, command
        chosen = cli(command, run, *words, "--step", "4")
        assert chosen.status == done.status and "is damaged" not in chosen.told
        assert "step-00000006.safetensors is damaged" in cli.refusal(command, run, *words, "--step", "6")
        assert "no checkpoint of step 5; steps: 2, 4, 6" in cli.refusal(command, run, *words, "--step", "5")
    assert cli.document("pack", run, *out, "--step", "2")["step"] == 2
    assert "needs --output with another file" in cli.refusal("pack", run, "--step", "4")
    assert "chooses a checkpoint" in cli.refusal("score", run, "--weights", "best", "--step", "4")
    assert "this is an artifact" in cli.refusal("score", tmp_path / "out.btw", "--step", "4")
    assert "this is a spec" in cli.refusal("audit", "tiny", "--step", "4")


def test_what_a_kill_left_out_of_a_finished_run_is_made_up_for_by_the_next_start(run: Path, cli: CommandLine) -> None:
    words = ["train", run / "spec.toml", "--runs-dir", run.parent, "--run", run.name, "--resume"]
    report = run / "report.html"
    report.unlink()
    (run / ".artifact.btw.4242.tmp").touch()
    assert cli.document(*words)["status"] == "finished"
    assert report.is_file() and not list(run.glob(".*"))
    written = report.stat().st_mtime_ns
    assert cli(*words).status == 0 and report.stat().st_mtime_ns == written
    # A kill between the score and its report.
    os.utime(run / "score.json", ns=(written + 10, written + 10))
    assert cli(*words).status == 0 and report.stat().st_mtime_ns > written


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("environment.json", b"[" * 200_000),
        ("environment.json", b'{"data": {"train": [], "heldout": []}}'),
        ("environment.json", b'{"packages": [], "ranks": {}, "earlier_starts": 3}'),
        ("score.json", b"[" * 200_000),
        ("score.json", b'{"bpb": 1e999}'),
        ("documents.safetensors", b"\x02" + bytes(7) + b"{}"),
        ("documents.safetensors", b"\xff" * 8),
        ("metrics.jsonl", b'{"event": "finished", "step": 6, "packing": 3}\n'),
        ("spec.toml", b"x = " + b"[" * 3000),
    ],
    ids=lambda value: str(value)[:40],
)
def test_odd_files_of_a_run_are_one_line(run: Path, cli: CommandLine, name: str, content: bytes) -> None:
    """In every command that reads runs; a resumed run mends what can be made again."""
    (run / name).write_bytes(content)
    for words in (["compare", run], ["record", run, "--output", run.parent / "record"], ["fit", run]):
        done = cli(*words)
        assert done.status in (0, 1, 2) and (done.status == 0 or done.err.count("\n") <= 2), done.err
        assert len(done.err) < 1000


def test_a_spec_that_was_edited_is_not_taken_for_an_artifact_that_was_packed_again(run: Path, cli: CommandLine) -> None:
    path = run / "spec.toml"
    path.write_text(re.sub("^patch_size = .*$", "patch_size = 2", path.read_text(), flags=re.MULTILINE))
    done = cli("compare", run)
    assert done.status == 2 and "one of the two is of another model" in done.told and "repair" not in done.told


def test_a_run_that_may_not_be_written_is_scored_all_the_same(
    run: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    """What is kept to resume has no place there."""

    def refused(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != run)
    monkeypatch.setattr(ScoreState, "offer", refused)
    monkeypatch.setattr(ScoreState, "remove", refused)
    done = cli("score", run, "--max-symbols", 256)
    assert done.status == 0 and "it is of a sample of the text" in done.told
