"""`bytetwin compare`: runs are grouped by spec, refused where scores do not compare, and judged with caution."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import RunError, UserError
from shared.runs.finished_run import FinishedRun
from shared.scoring.document import AdaptationPart
from shared.spec.adaptation import AdaptationSpec
from shared.study.comparison import ComparedGroup, Comparison, compare_groups, notes
from shared.study.groups import differences, group_runs
from shared.study.table import markdown
from tests.command_line import CommandLine
from tests.fake_study import copy_run, documents, edited, finished_run, read_json, with_score


def runs_of(name: str, *scores: float, first_seed: int = 0, **changes: Any) -> list[FinishedRun]:
    return [finished_run(name, first_seed + index, bpb, **changes) for index, bpb in enumerate(scores)]


def compared(*runs: list[FinishedRun], **options: Any) -> Comparison:
    return compare_groups(group_runs([run for group in runs for run in group]), **options)


def only_other(*runs: list[FinishedRun], **options: Any) -> ComparedGroup:
    (_, row) = compared(*runs, **options).rows
    return row


def test_runs_are_grouped_by_everything_but_the_seed() -> None:
    runs = [*runs_of("a", 2.0, 2.1), *runs_of("b", 1.9), *runs_of("a", 2.2, first_seed=7)]
    groups = group_runs(runs)
    assert [(group.label, list(group.bpb)) for group in groups] == [("a", [0, 1, 7]), ("b", [0])]
    assert differences(groups) == {"data.heldout": ["a", "b"]}


def test_the_engine_is_part_of_the_experiment() -> None:
    groups = group_runs([*runs_of("a", 2.0), *runs_of("a", 2.0, engine="torch", path="runs/t-seed0")])
    assert [group.label for group in groups] == ["a", "t"]
    assert differences(groups) == {"engine": ["mlx", "torch"]}


def test_runs_are_grouped_by_their_training_text_not_by_its_name() -> None:
    old, new = runs_of("a", 2.0, 2.1, 2.2), runs_of("a", 1.9, 1.95, first_seed=3, train_text="cd" * 32)
    groups = group_runs([*old, *new, finished_run("a", 5, 2.3, "data.train=copy")])
    assert [list(group.bpb) for group in groups] == [[0, 1, 2, 5], [3, 4]]
    assert differences(groups) == {"training text": ["ef" * 32, "cd" * 32]}
    found = compare_groups(groups)
    expected = f"the training texts differ: a-seed0 on toy (sha256 {'ef' * 8}), a-seed3 on toy (sha256 {'cd' * 8})"
    assert expected in notes(found)
    page = markdown(found, "T", "bytetwin compare x")
    assert expected in page and page.count("cd" * 8) == 1
    assert notes(compared(old)) == []


def test_labels_stay_unique() -> None:
    one = finished_run("a", 0, 2.0, path="first/a-seed0")
    other = finished_run("a", 0, 2.0, "optimizer.matrix_lr=0.5", path="second/a-seed0")
    assert [group.label for group in group_runs([one, other])] == ["first/a-seed0", "second/a-seed0"]
    mixed = [finished_run("a", seed, 2.0, path=f"runs/{name}") for seed, name in enumerate(("x", "y"))]
    assert [group.label for group in group_runs(mixed)] == ["x"]


def test_a_seed_counts_once() -> None:
    with pytest.raises(RunError, match="same experiment with the same seed 0"):
        group_runs([finished_run("a", 0, 2.0), finished_run("a", 0, 2.1, path="runs/again")])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text_sha256", "cd" * 32),
        ("window_symbols", 128),
        ("stride_symbols", 64),
        ("adaptation", AdaptationPart(settings=AdaptationSpec(kind="score_first"), journal=[])),
        ("weights", "trained"),
    ],
)
def test_scores_made_otherwise_are_refused(field: str, value: Any) -> None:
    other = finished_run("b", 0, 2.0)
    dataset = other.score.dataset.model_copy(update={"text_sha256": "cd" * 32})
    other = with_score(other, **({"dataset": dataset} if field == "text_sha256" else {field: value}))
    with pytest.raises(RunError, match=f"{field} = .*such scores cannot be compared"):
        group_runs([finished_run("a", 0, 2.0), other])


def test_tokens_and_bytes_of_one_text_compare() -> None:
    kind = ("vocabulary.kind=tokens", "vocabulary.vocab_size=512")
    dataset = finished_run("bytes", 0, 2.0).score.dataset.model_copy(update={"name": "toy-sp512/heldout"})
    score = {"symbols": 400, "window_symbols": 25, "stride_symbols": 25, "dataset": dataset}
    tokens = [finished_run("tokens", seed, 1.9 + 0.1 * seed, *kind, **score) for seed in range(3)]
    found = compare_groups(group_runs([*runs_of("bytes", 2.0, 2.1, 2.2), *tokens]))
    assert found.rows[1].verdict == "better"
    expected = "the vocabularies differ; mean bytes of text in a scored window: bytes 64, tokens 62"
    assert expected in notes(found)
    other_text = with_score(tokens[0], dataset=dataset.model_copy(update={"text_sha256": "cd" * 32}))
    with pytest.raises(RunError, match=r"text_sha256 = .*text/heldout and toy-sp512/heldout"):
        group_runs([*runs_of("bytes", 2.0), other_text])


def test_three_equal_improvements_are_better() -> None:
    row = only_other(runs_of("a", 2.0, 2.1, 2.2), runs_of("b", 1.9, 1.99, 2.11))
    assert row.difference is not None and row.difference.method == "paired" and row.difference.n == 3
    assert row.difference.mean == pytest.approx(-0.1) and row.difference.std == pytest.approx(0.01)
    assert row.over_documents is not None and row.over_documents.num_units == 20
    assert row.verdict == "better"
    assert only_other(runs_of("b", 1.9, 1.99, 2.11), runs_of("a", 2.0, 2.1, 2.2)).verdict == "worse"


def test_a_difference_within_the_spread_of_seeds_is_undecided() -> None:
    assert only_other(runs_of("a", 2.0, 2.1, 2.2), runs_of("b", 1.9, 2.2, 2.1)).verdict == "undecided"


def test_a_difference_within_the_spread_of_documents_is_undecided() -> None:
    """All seeds agree on -0.1, but half of the documents get better by 1.1 and half worse by 0.9."""
    new = [dataclasses.replace(run, documents=documents(run.score.bpb, 1.0)) for run in runs_of("b", 1.9, 2.0, 2.1)]
    row = only_other(runs_of("a", 2.0, 2.1, 2.2), new)
    assert row.difference is not None and row.difference.interval is not None
    assert row.difference.interval.high < 0 and row.verdict == "undecided"
    bare = [*new[:2], dataclasses.replace(new[2], documents=None)]
    comparison = compared(runs_of("a", 2.0, 2.1, 2.2), bare)
    assert comparison.rows[1].over_documents is None and comparison.rows[1].verdict == "better"
    assert any("no scores by document" in note for note in comparison.to_document()["notes"])


def test_two_seeds_decide_nothing_however_clear() -> None:
    comparison = compared(runs_of("a", 2.0, 2.0), runs_of("b", 1.0, 1.0))
    assert comparison.rows[1].verdict == "too few seeds"
    assert any(note.startswith("fewer than 3 seeds") for note in comparison.to_document()["notes"])


def test_other_seeds_are_compared_unpaired() -> None:
    comparison = compared(runs_of("a", 2.0, 2.1, 2.2), runs_of("b", 1.0, 1.1, 1.2, first_seed=5))
    row = comparison.rows[1]
    assert row.difference is not None and row.difference.method == "welch" and row.verdict == "better"
    assert any("Welch" in note for note in comparison.to_document()["notes"])


def test_means_are_over_the_seeds_that_were_compared() -> None:
    """Over all five seeds a is worse than b in the mean, over the three that b has too it is better."""
    comparison = compared(runs_of("a", 6.74, 6.75, 6.76, 6.86, 6.87), runs_of("b", 6.77, 6.75, 6.79))
    baseline, row = comparison.rows
    assert baseline.summary.mean == pytest.approx(6.75) and row.summary.mean == pytest.approx(6.77)
    assert row.difference is not None and row.difference.mean == pytest.approx(0.02)
    page = markdown(comparison, "T", "bytetwin compare x")
    assert "| a | 6.7500 | 0.0100 | 3 of 5 |" in page and "| b | 6.7700 | 0.0200 | 3 | +0.0200 |" in page
    assert "means and deviations are over the seeds that were compared" in notes(comparison)


seeds_of = st.dictionaries(st.integers(0, 5), st.floats(1.0, 3.0), min_size=1)


@settings(max_examples=60)
@given(st.lists(seeds_of, min_size=2, max_size=4))
def test_a_mean_and_a_difference_never_contradict_each_other(scores: list[dict[int, float]]) -> None:
    groups = [
        [finished_run(str(index), seed, bpb) for seed, bpb in by_seed.items()] for index, by_seed in enumerate(scores)
    ]
    comparison = compared(*groups)
    baseline, *others = comparison.rows
    for row in others:
        assert row.difference is not None
        assert row.difference.mean == pytest.approx(row.summary.mean - row.baseline_summary.mean, abs=1e-12)
        shown = f"{row.baseline_summary.n} seeds of 0, whose mean is {row.baseline_summary.mean:.4f}"
        assert row.baseline_summary == baseline.summary or any(shown in note for note in notes(comparison))


def test_a_leak_or_an_oversized_artifact_never_wins() -> None:
    old, new = runs_of("a", 2.0, 2.1, 2.2), runs_of("b", 0.1, 0.2, 0.31)
    audit = new[0].score.audit
    failed = audit.model_copy(update={"checks": [audit.checks[0].model_copy(update={"passed": False})]})
    for changes in ({"audit": failed}, {"artifact_bytes": 2000}):
        bad = [with_score(run, **changes) for run in new]
        comparison = compared(old, bad)
        assert [row.verdict for row in comparison.rows] == ["baseline", "does not count"]
        assert len(comparison.problems) == 3
        assert [row.verdict for row in compared(bad, old).rows] == ["does not count", "does not count"]


def test_the_baseline_can_be_chosen_and_stands_first() -> None:
    old, new = runs_of("a", 2.0, 2.1, 2.2), runs_of("b", 1.9, 1.99, 2.11)
    comparison = compared(old, new, baseline="b")
    assert [row.group.label for row in comparison.rows] == ["b", "a"]
    with pytest.raises(UserError, match="no such group; groups: a, b"):
        compared(old, new, baseline="c")


def test_the_margin_is_in_nats_per_symbol_of_the_baseline() -> None:
    """0.005 nats per token at 2 bytes a token are 0.005 / ln 2 / 2 bits per byte (docs/techniques.md 1.6)."""
    old = runs_of("a", 2.0, 2.1, 2.2, symbols=500)
    assert compared(old, margin_nats=0.005).margin_bpb == pytest.approx(0.0036067376)


def test_uneven_load_is_told_where_time_was_the_limit() -> None:
    def notes(timed: bool, seconds: float) -> list[str]:
        driver = ("schedule.driver=time", "training.time_limit_s=60.0") if timed else ()
        runs = [finished_run("a", 0, 2.0, *driver), finished_run("a", 1, 2.1, *driver, train_s=seconds)]
        found: list[str] = compared(runs).to_document()["notes"]
        return found

    assert any("1.67 to 2 steps per second" in note for note in notes(True, 60.0))
    assert notes(True, 52.0) == [] and notes(False, 60.0) == []


def test_many_comparisons_and_other_devices_are_told() -> None:
    groups = [runs_of(name, 2.0, 2.1, 2.2 + shift) for name, shift in (("a", 0), ("b", 0.1), ("c", 0.2))]
    groups[2] = [dataclasses.replace(run, environment={**run.environment, "device": "another"}) for run in groups[2]]
    notes = compared(*groups).to_document()["notes"]
    assert any(note.startswith("2 comparisons at 99% each") and note.endswith("up to 2%") for note in notes)
    assert any("different devices: a device; another" in note for note in notes)


def test_markdown_has_every_figure_and_the_command() -> None:
    text = markdown(compared(runs_of("a", 2.0, 2.1, 2.2), runs_of("b", 1.9, 1.99, 2.11)), "T", "bytetwin compare x")
    assert text.startswith("# T\n") and "    bytetwin compare x\n" in text
    assert "| b | 2.0000 | 0.1054 | 3 | -0.1000 |" in text
    assert "| a | 0 | 2.0000 | 100 | 50.0 | 51,200 | 10 | 100 | mlx on a device |" in text
    assert "- data.heldout: a, b" in text


@settings(max_examples=40)
@given(st.permutations(range(6)))
def test_the_order_of_runs_within_groups_does_not_matter(order: list[int]) -> None:
    runs = [*runs_of("a", 2.0, 2.1, 2.2), *runs_of("b", 1.9, 1.99, 2.11)]
    shuffled = group_runs([runs[index] for index in order])
    rows = compare_groups(shuffled, baseline="a").to_document()["groups"]
    assert rows == compare_groups(group_runs(runs)).to_document()["groups"]


def test_a_folder_of_runs_on_the_command_line(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    for seed in range(3):
        copy_run(trained, tmp_path / f"old-seed{seed}", f"training.seed={seed}", factor=1 + seed / 1000)
        lr = "optimizer.matrix_lr=0.5"
        copy_run(trained, tmp_path / f"new-seed{seed}", f"training.seed={seed}", lr, factor=0.9 + seed / 1000)
    (tmp_path / "notes.txt").write_text("not a run")
    record = tmp_path / "record.md"
    done = cli("compare", tmp_path, "--baseline", "old", "--json", "--output", record, "--confidence", "0.95")
    document = done.document
    assert done.status == 0 and document["baseline"] == "old" and document["confidence"] == 0.95
    old, new = document["groups"]
    score = read_json(trained / "score.json")
    bpb = score["bpb"]
    assert old["bpb"]["mean"] == pytest.approx(bpb * 1.001) and old["bpb"]["n"] == 3
    assert new["difference_bpb"]["mean"] == pytest.approx(-0.1 * bpb)
    assert new["verdict"] == "better" and new["over_documents"]["num_units"] == score["documents"]
    assert document["differing_fields"] == {"optimizer.matrix_lr": [0.02, 0.5]}
    assert "better" in done.err and "optimizer.matrix_lr: 0.02, 0.5" in done.err
    assert record.read_text().count("| new |") == 4


def test_refusals_are_one_line(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    strided = copy_run(trained, tmp_path / "strided", "evaluation.stride_symbols=32")
    with edited(strided / "score.json") as score:
        score["stride_symbols"] = 32
    (tmp_path / "empty").mkdir()
    for words, message in (
        ((trained, strided), "stride_symbols = 64"),
        ((tmp_path / "empty",), "neither a run nor a folder of finished runs"),
        ((tmp_path / "nowhere",), "no run named"),
        ((trained, "--baseline", "x"), "no such group; groups: first"),
        ((trained, "--output", tmp_path / "no" / "r.md"), "does not exist"),
    ):
        assert message in cli.refusal("compare", *words)


def test_documents_that_contradict_the_score_are_refused(trained: Path, tmp_path: Path, cli: CommandLine) -> None:
    run = copy_run(trained, tmp_path / "run")
    with edited(run / "score.json") as score:
        score["documents"] = 98
    assert "does not add up to the score" in cli.refusal("compare", run)
    (run / "documents.safetensors").unlink()
    assert cli("compare", run).status == 0
