"""Whether a record is beaten: the answer by hand, in `compare`, and in `record --against`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.study.groups import Group
from shared.study.significance import Significance, significance
from tests.command_line import CommandLine
from tests.fake_study import copy_run, edited, finished_run, read_json, with_score

# 0.005 / ln 2: in bits per byte where a symbol is a byte.
MARGIN = 0.0072134752


def group(name: str, *scores: float, first_seed: int = 0, **changes: Any) -> Group:
    runs = [finished_run(name, first_seed + index, bpb, **changes) for index, bpb in enumerate(scores)]
    return Group(name, tuple(runs))


def p_of(found: Significance) -> float:
    assert found.difference.probability is not None
    return found.difference.probability


def test_paired_by_hand() -> None:
    """Differences of mean -0.03 with two degrees of freedom, where P(t > x) = (1 - x / sqrt(2 + x^2)) / 2.

    Deviation 0.01: x = (0.03 - margin) / (0.01 / sqrt 3) = 3.946742. Deviation 0.001: ten times that.
    """
    old = group("old", 2.1, 2.2, 2.3)
    found = significance(group("new", 2.06, 2.17, 2.28), old)
    assert found.margin_bpb == pytest.approx(MARGIN, rel=1e-8)
    assert p_of(found) == pytest.approx(0.02930544, rel=1e-5) and found.answer == "not beaten"
    found = significance(group("new", 2.069, 2.17, 2.271), old)
    assert p_of(found) == pytest.approx(0.0003206820, rel=1e-5) and found.answer == "beaten"
    assert (found.difference.method, found.difference.degrees, found.new.n, found.old.n) == ("paired", 2, 3, 3)
    assert found.text == (
        "old is beaten by new: mean 2.1700 (sd 0.1010, n = 3) against 2.2000 (sd 0.1000, n = 3), difference -0.0300; "
        "better by more than 0.0072 bits per byte (0.005 nats per symbol): p = 0.000321 (one-sided paired t, 2 degrees "
        "of freedom), p < 0.01 is needed"
    )


def test_welch_by_hand() -> None:
    """Deviations of 0.01 on both sides, so four degrees of freedom, where P(t > x) = (1 - s (1 + 2 / (4 + x^2))) / 2
    with s = x / sqrt(4 + x^2). Means differ by 0.04: x = (0.04 - margin) / (0.01 sqrt(2 / 3)) = 4.015513."""
    found = significance(group("new", 2.15, 2.16, 2.17, first_seed=7), group("old", 2.19, 2.2, 2.21))
    assert (found.difference.method, found.difference.degrees) == ("welch", 4)
    assert p_of(found) == pytest.approx(0.007961784, rel=1e-5) and found.answer == "beaten"
    assert "(one-sided Welch t, 4 degrees of freedom)" in found.text
    found = significance(group("new", 2.16, 2.17, 2.18, first_seed=7), group("old", 2.19, 2.2, 2.21))
    assert p_of(found) == pytest.approx(0.02463670, rel=1e-5) and found.answer == "not beaten"


def test_the_margin_is_of_the_old_tokenizer() -> None:
    """At two bytes a token 0.005 nats are half as many bits per byte: differences of 0.0065 are enough there only."""
    scores = (2.1 - 0.0064, 2.2 - 0.0065, 2.3 - 0.0066)
    for new_symbols, old_symbols, answer in ((500, 1000, "not beaten"), (1000, 500, "beaten")):
        new = group("new", *scores, symbols=new_symbols)
        found = significance(new, group("old", 2.1, 2.2, 2.3, symbols=old_symbols))
        assert found.margin_bpb == pytest.approx(MARGIN * old_symbols / 1000, rel=1e-8)
        assert found.answer == answer
    # Exactly the margin is not more than the margin.
    exact = significance(group("new", *(old - MARGIN for old in (2.1, 2.2, 2.3))), group("old", 2.1, 2.2, 2.3))
    assert exact.answer == "not beaten"


def test_two_seeds_and_a_leak_give_no_verdict() -> None:
    old = group("old", 2.1, 2.2, 2.3)
    for few, other, count in ((group("new", 1.0, 1.1), old, 2), (old, group("new", 9.0), 1)):
        found = significance(few, other)
        assert found.answer == "too few seeds" and f"n = {count}, at least 3 seeds are needed" in found.text
        assert found.text.startswith(f"no verdict on whether {other.label} is beaten by {few.label}: ")
    heavy = Group("new", tuple(with_score(run, artifact_bytes=2000) for run in group("new", 1.0, 1.1, 1.2).runs))
    for new, against in ((heavy, old), (old, heavy)):
        found = significance(new, against)
        assert found.answer == "does not count" and found.text.startswith("no verdict on whether ")


def test_two_shared_seeds_of_three_are_not_too_few() -> None:
    found = significance(group("new", 2.0, 2.001, 2.002, first_seed=1), group("old", 2.2, 2.201, 2.202))
    assert found.answer == "beaten" and found.difference.method == "welch" and found.new.n == found.old.n == 3


@pytest.fixture
def old_and_new(trained: Path, tmp_path: Path) -> tuple[Path, list[Path], list[Path]]:
    """A folder with three runs, and three that are better by a tenth."""
    old = [
        copy_run(trained, tmp_path / f"old-seed{seed}", f"training.seed={seed}", factor=1 + seed / 1000)
        for seed in range(3)
    ]
    new = [
        copy_run(
            trained,
            tmp_path / f"new-seed{seed}",
            f"training.seed={seed}",
            "optimizer.matrix_lr=0.5",
            factor=0.9 + seed / 1000,
        )
        for seed in range(3)
    ]
    return tmp_path, old, new


def test_a_record_against_a_record(old_and_new: tuple[Path, list[Path], list[Path]], cli: CommandLine) -> None:
    folder, old, new = old_and_new
    first, second = folder / "first", folder / "second"
    assert cli("record", *old, "--output", first).status == 0
    assert "against" not in read_json(first / "submission.json")
    done = cli("record", *new, "--output", second, "--against", first)
    assert done.status == 0 and f"{first} is beaten by second: mean " in done.told
    found = read_json(second / "submission.json")["against"]
    assert found["answer"] == "beaten" and found["difference_bpb"]["n"] == 3
    assert found["margin_bpb"] == pytest.approx(MARGIN) and found["difference_bpb"]["probability"] < 0.01
    page = (second / "README.md").read_text()
    assert f"## Against another record\n\n{first} is beaten by second: mean " in page
    # The other way round it is still a record, and status 1 says that it beats nothing.
    done = cli("record", *old, "--output", first, "--replace", "--against", second, "--json")
    assert done.status == 1 and done.document["submission"]["against"]["answer"] == "not beaten"
    assert read_json(first / "submission.json") == done.document["submission"]
    # `compare` takes records, and calls them by their names.
    document = cli.document("compare", first, second)
    assert [row["label"] for row in document["groups"]] == ["first", "second"]
    assert [row["significance"] and row["significance"]["answer"] for row in document["groups"]] == [None, "beaten"]
    done = cli("compare", first, second)
    assert "first is beaten by second: mean " in " ".join(done.out.split())


def test_other_protocols_and_folders_that_are_no_record_are_refused(
    old_and_new: tuple[Path, list[Path], list[Path]], cli: CommandLine
) -> None:
    folder, old, new = old_and_new
    (folder / "empty").mkdir()
    strided = copy_run(old[0], folder / "strided")
    with edited(strided / "score.json") as score:
        score["stride_symbols"] = 32
    other_text = copy_run(old[0], folder / "other-text")
    with edited(other_text / "score.json") as score:
        score["dataset"]["text_sha256"] = "0" * 64
    public = folder / "public"
    public.mkdir()
    (public / "submission.json").write_text('{"val_bpb": 1.2}')
    for against, message in (
        (strided, "stride_symbols = 64, "),
        (other_text, "text_sha256 = "),
        (folder / "empty", "neither a run nor a folder of finished runs"),
        (public, "neither a run nor a folder of finished runs"),
        (folder / "nowhere", "no run named"),
        (folder, "the runs of a record differ in training.seed only"),
    ):
        refusal = cli.refusal("record", *new, "--output", folder / "out", "--against", against)
        assert message in refusal and not (folder / "out").exists()
        assert "stride" not in message or "such scores cannot be compared" in refusal
