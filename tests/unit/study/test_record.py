"""`bytetwin record`: finished runs become a folder whose figures are theirs, or nothing."""

from __future__ import annotations

import math
import shlex
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.scoring.confidence import student_quantile
from shared.spec import load_spec
from shared.study import record, record_text
from tests.command_line import CommandLine, set_words
from tests.fake_study import copy_run, edited, finished_run, read_json
from tests.fake_training import SHORT

# The field names that most of the public records share.
PUBLIC_FIELDS = """author github_id name blurb date val_loss val_bpb val_bpb_std seeds seed_results bytes_total
    bytes_code hardware pytorch_version compliance"""


def another(trained: Path, folder: Path, *overrides: str, bpb: float | None = None) -> Path:
    """A copy of the run as another seed would have left it, with another score."""
    before = read_json(trained / "score.json")["bpb"]
    return copy_run(trained, folder, *overrides, factor=(bpb or before) / before)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("over", "fits"), [(0, True), (1, False)])
def test_the_limit_holds_for_artifact_and_code_together(over: int, fits: bool) -> None:
    run = finished_run("a", 0, 2.0)
    code_bytes = record.LIMIT_BYTES - run.artifact_bytes + over
    found = record.submission([run], code_bytes, "T", "", record.Author())
    assert found["compliance"]["artifact_under_16mb"] == fits and found["bytes_total"] == record.LIMIT_BYTES + over


def test_one_run_becomes_a_folder_that_holds_everything(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    out = tmp_path / "records" / "one"
    words = ("--output", out, "--author", "A", "--github", "a-b", "--title", "T")
    document = cli.document("record", trained, *words)
    assert document["folder"] == str(out)
    assert names(out) == [
        "README.md",
        "score.py",
        *[f"seed1337/{name}" for name in sorted(set(record.KEPT_FILES) - {"preflight.json"})],
        "spec.toml",
        "submission.json",
        "train.py",
    ]
    assert (out / "seed1337/artifact.btw").read_bytes() == (trained / "artifact.btw").read_bytes()
    submission = read_json(out / "submission.json")
    assert submission == document["submission"] and submission.keys() >= set(PUBLIC_FIELDS.split())
    score = read_json(trained / "score.json")
    assert submission["val_bpb"] == score["bpb"] and submission["val_bpb_std"] is None
    assert submission["val_loss"] == score["nats"] / score["symbols"]
    assert submission["bytes_code"] == (out / "train.py").stat().st_size == score["code_bytes"]
    assert submission["bytes_total"] == (trained / "artifact.btw").stat().st_size + score["code_bytes"]
    assert (submission["author"], submission["github_id"], submission["name"]) == ("A", "a-b", "T")
    assert submission["seed_results"]["1337"]["steps"] == 6
    assert submission["compliance"]["artifact_under_16mb"] and not submission["compliance"]["three_seeds"]
    text = (out / "README.md").read_text()
    assert f"**{score['bpb']:.4f} bits per byte** (one seed)" in text and text.startswith("# T\n")
    assert "pip install brotli==" in text
    # The record's own folders can be scored and audited like runs.
    assert f"bytetwin score seed1337/{trained.name}" not in text and "bytetwin score seed1337/artifact.btw" in text
    assert load_spec(out / "spec.toml") == load_spec(trained / "spec.toml")


def test_several_seeds_give_mean_and_deviation(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    runs = [
        another(trained, tmp_path / f"run{seed}", f"training.seed={seed}", bpb=bpb)
        for seed, bpb in ((314, 6.25), (42, 6.5), (999, 6.0))
    ]
    (runs[1] / "preflight.json").write_text('{"go": true, "forced": ["disk"], "risks": ["artifact_bytes"]}')
    assert cli("record", *runs, "--output", tmp_path / "out").status == 0
    submission = read_json(tmp_path / "out/submission.json")
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
    trained: Path, tmp_path: Path, cli: CommandLine, overrides: list[str], message: str
) -> None:
    other = another(trained, tmp_path / "other", *overrides)
    assert message in cli.refusal("record", trained, other, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_on_different_text_are_not_averaged(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    other = another(trained, tmp_path / "other", "training.seed=2")
    with edited(other / "score.json") as score:
        score["dataset"].update(sha256="0" * 64, scored_sha256="0" * 64)
    assert "were scored on different text" in cli.refusal("record", trained, other, "--output", tmp_path / "out")


def test_runs_on_different_training_text_are_no_record(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    """The text counts, its name does not."""
    other = another(trained, tmp_path / "other", "training.seed=2")
    with edited(other / "environment.json") as environment:
        old = environment["data"]["train"]["sha256"][:16]
        environment["data"]["train"]["sha256"] = "0" * 64
    message = cli.refusal("record", trained, other, "--output", tmp_path / "out")
    assert f"{trained} was trained on builtin with sha256 {old}, {other} on builtin with {'0' * 16}" in message
    assert not (tmp_path / "out").exists()
    renamed = another(trained, tmp_path / "renamed", "training.seed=2", "data.train=copy")
    assert cli("record", trained, renamed, "--output", tmp_path / "out").status == 0
    with edited(renamed / "environment.json") as environment:
        del environment["data"]
    assert "no data.train.sha256" in cli.refusal("record", trained, renamed, "--output", tmp_path / "other-out")


def test_an_unfinished_run_is_refused(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    lines = (trained / "metrics.jsonl").read_text().splitlines(keepends=True)
    unscored = another(trained, tmp_path / "unscored")
    (unscored / "metrics.jsonl").write_text("".join(line for line in lines if '"finished"' not in line))
    resumed = another(trained, tmp_path / "resumed")
    step = next(line for line in lines if '"event": "step"' in line)
    (resumed / "metrics.jsonl").write_text("".join([*lines, step]))
    empty = tmp_path / "empty"
    shutil.copytree(trained, empty, ignore=shutil.ignore_patterns("score.json", "artifact.btw"))
    for run in (unscored, resumed, empty):
        message = cli.refusal("record", run, "--output", tmp_path / "out")
        assert f"{run}: not finished" in message and f"--run {run.name} --resume" in message
    assert "no run named" in cli.refusal("record", tmp_path / "absent")
    assert "not a run directory" in cli.refusal("record", tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_score_of_another_artifact_is_refused(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    other = another(trained, tmp_path / "other")
    with edited(other / "score.json") as score:
        score["artifact_bytes"] += 1
    assert "the score is not that of artifact.btw" in cli.refusal("record", other, "--output", tmp_path / "out")


def test_over_the_budget_or_a_failed_audit_is_status_1_and_no_folder(
    trained: Path, tmp_path: Path, cli: CommandLine
) -> None:
    heavy = another(trained, tmp_path / "heavy")
    with edited(heavy / "score.json") as score:
        score["limit_bytes"] = 1000
    done = cli("record", heavy, "--output", tmp_path / "out")
    assert done.status == 1 and "no record: " in done.err and "the limit is 1,000" in done.err
    # Over the limit with the script of the record alone: the score counted less.
    late = another(trained, tmp_path / "late")
    with edited(late / "score.json") as score:
        score["limit_bytes"], score["code_bytes"] = score["artifact_bytes"] + 1000, 10
    done = cli("record", late, "--output", tmp_path / "out")
    assert done.status == 1 and f"no record: {late}: budget: " in done.err and " code of the record" in done.told
    leaky = another(trained, tmp_path / "leaky")
    with edited(leaky / "score.json") as score:
        score["audit"]["passed"] = score["audit"]["checks"][0]["passed"] = False
    done = cli("record", "--json", leaky, "--output", tmp_path / "out")
    assert done.status == 1 and "audit: future: " in done.err
    assert done.document["folder"] is None and len(done.document["problems"]) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_is_replaced_only_if_asked_and_only_a_record(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    out = tmp_path / "out"
    assert cli("record", trained, "--output", out).status == 0
    assert "exists; --replace overwrites it" in cli.refusal("record", trained, "--output", out)
    (out / "stale").touch()
    assert cli("record", trained, "--output", out, "--replace").status == 0
    assert not (out / "stale").exists() and (out / "submission.json").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    assert "is not a record" in cli.refusal("record", trained, "--output", mine, "--replace")
    assert names(mine) == ["thesis.txt"] and sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_failure_in_the_middle_leaves_the_old_record(
    trained: Path, tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert cli("record", trained, "--output", out).status == 0
    before = {name: (out / name).read_bytes() for name in names(out)}

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(record.shutil, "copyfile", full)
    assert "no space left on device" in cli.refusal("record", trained, "--output", out, "--replace")
    assert {name: (out / name).read_bytes() for name in names(out)} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_record_whose_replacement_was_killed_between_the_renames_gets_its_name_back(
    trained: Path, tmp_path: Path, cli: CommandLine
) -> None:
    out = tmp_path / "out"
    assert cli("record", trained, "--output", out, "--title", "old").status == 0
    before = {name: (out / name).read_bytes() for name in names(out)}
    out.rename(tmp_path / ".out.4242.old")
    shutil.copytree(tmp_path / ".out.4242.old", tmp_path / ".out.4242.tmp")
    assert "exists; --replace overwrites it" in cli.refusal("record", trained, "--output", out)
    assert {name: (out / name).read_bytes() for name in names(out)} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # Killed after the second rename: the new record stays.
    shutil.copytree(out, tmp_path / ".out.4242.old")
    assert cli("record", trained, "--output", out, "--title", "new", "--replace").status == 0
    assert read_json(out / "submission.json")["name"] == "new" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_finished_run_is_not_trained_again(trained: Path, cli: CommandLine) -> None:
    words = ["train", "tiny", "--runs-dir", trained.parent, "--run", trained.name, "--resume"]
    words += set_words("training.compile=false", *SHORT)
    before = {name: (trained / name).stat().st_mtime_ns for name in names(trained)}
    document = cli.document(*words, "--ranks", "2")
    assert document["status"] == "finished" and document["steps"] == 6
    assert document["score"] == read_json(trained / "score.json")
    assert {name: (trained / name).stat().st_mtime_ns for name in names(trained)} == before
    # Another spec under the same name is not taken for it.
    refusal = cli.refusal(*words, "--engine", "torch", "--set", "training.seed=5")
    assert "training.seed = 1337, now it is 5" in refusal


@settings(max_examples=50)
@given(st.lists(st.floats(0.5, 10.0), min_size=1, max_size=8))
def test_the_deviation_has_one_degree_of_freedom_less(values: list[float]) -> None:
    found = record.deviation(values)
    if len(values) == 1:
        assert found is None
    else:
        mean = statistics.fmean(values)
        expected = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_words_about_the_model_are_those_of_its_spec() -> None:
    """A vocabulary of tokens, steps that have no bits, and tensors with settings of their own."""
    tokens = load_spec("baseline-mini", ["data.train=toy"])
    run = finished_run("a", 0, 2.0)
    blurb = record_text.default_blurb([replace(run, spec=tokens)])
    assert "tokens of a vocabulary of 512" in blurb and "no tokenizer" not in blurb
    assert "bytes at a time, no tokenizer" in record_text.default_blurb([replace(run, spec=load_spec("smoke"))])
    weights = record_text._storage(load_spec("smoke", ["artifact.matrix.step=0.02"]))
    assert weights[0] == "matrices steps of 0.02 loss (uniform, two_sided)"
    assert weights[1:] == ["embeddings 8 bits (row_max)", "`ngram_embed.tables.*` 5 bits (row_max)"]
    assert record_text._storage(load_spec("tiny"))[0] == "matrices 6 bits (row_max)"


def test_packages_are_quoted_for_a_shell() -> None:
    words = ["numpy==2", "mlx==1; sys_platform == 'darwin'", "odd'$HOME", 'a"b']
    line = " ".join(map(record_text._quoted, words))
    assert shlex.split(line) == words and """"mlx==1; sys_platform == 'darwin'\"""" in line
