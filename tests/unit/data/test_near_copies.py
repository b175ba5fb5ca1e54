"""An import puts no near-copy on both sides, and a document without one where it always was."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.datasets import open_split
from data.importing import import_dataset
from data.near_copies import heldout_documents, split_builder
from shared import tolerances
from shared.cli.main import main
from shared.errors import DataError
from shared.scoring.overlap import check_overlap
from tests.datasets import BYTES

pytestmark = pytest.mark.usefixtures("datasets")


def words(rng: np.random.Generator, count: int) -> list[str]:
    return rng.bytes(3 * count).hex(" ", 3).split()


def held(documents: list[str], heldout_frac: float = 0.3) -> list[bool]:
    builder = split_builder()
    for document in documents:
        builder.write(document.encode())
        builder.end_document()
    return heldout_documents(builder.finish(), heldout_frac)[0].tolist()


def families(seed: int, number: int) -> list[list[str]]:
    """Documents by the dozen words, each with up to two copies: other white space, another case, a word changed, a
    sentence before it or after it."""
    rng = np.random.default_rng(seed)
    changes = [
        lambda text: "  ".join(text),
        lambda text: "\n".join(text).upper(),
        lambda text: " ".join([*text[:9], "changed", *text[10:]]),
        lambda text: " ".join([*words(rng, 12), *text]),
        lambda text: " ".join([*text, *words(rng, 12)]),
    ]
    found = []
    for _ in range(number):
        text = words(rng, int(rng.integers(60, 120)))
        chosen = rng.choice(len(changes), rng.integers(0, 3), replace=False)
        found.append([" ".join(text), *(changes[change](text) for change in chosen)])
    return found


@settings(max_examples=15)
@given(seed=st.integers(0, 2**16), frac=st.sampled_from([0.05, 0.3, 0.7]))
def test_near_copies_are_on_one_side(seed: int, frac: float) -> None:
    groups = families(seed, 60)
    places = [(group, copy) for group, copies in enumerate(groups) for copy in range(len(copies))]
    order = np.random.default_rng(seed).permutation(len(places))
    sides = held([groups[places[place][0]][places[place][1]] for place in order], frac)
    by_group: dict[int, set[bool]] = {}
    for place, side in zip(order, sides, strict=True):
        by_group.setdefault(places[place][0], set()).add(side)
    assert all(len(found) == 1 for found in by_group.values())
    # A document without a copy stays where it is alone.
    alone = [group for group, copies in enumerate(groups) if len(copies) == 1]
    assert held([groups[group][0] for group in alone], frac) == [by_group[group] == {True} for group in alone]


def test_the_share_is_kept_however_many_copies_there_are() -> None:
    """Of 4,000 groups, within five standard deviations; the smallest key of a group would hold out far more."""
    rng = np.random.default_rng(0)
    sides = []
    for copies in (1, 3):
        documents = [" ".join(text) for text in (words(rng, 20) for _ in range(4000))]
        sides.append(held([document + " x" * copy for document in documents for copy in range(copies)], 0.1))
    for side in sides:
        assert abs(np.mean(side) - 0.1) < 5 * np.sqrt(0.1 * 0.9 / 4000)


def test_what_several_training_documents_hold_is_training_text() -> None:
    """A digest of others is like none of them; a shared licence does not bind documents together."""
    rng = np.random.default_rng(1)
    licence = words(rng, 30)
    parts = [words(rng, 100) for _ in range(12)]
    documents = [" ".join([*part, *licence]) for part in parts]
    digests = [" ".join([*one[:50], *two[:50]]) for one, two in itertools.pairwise(parts)]
    for frac in (0.2, 0.5, 0.8):
        sides = np.array(held([*documents, *digests], frac))
        for index, side in enumerate(sides[len(documents) :]):
            assert not side or (sides[index] or sides[index + 1])
        assert sides[: len(documents)].tolist() == held(documents, frac) or not sides.all()
    assert 0 < np.sum(held(documents, 0.5)) < len(documents)


def write_lines(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


def test_an_import_passes_the_check_that_it_is_made_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = [document for group in families(0, 200) for document in group]
    path = write_lines(tmp_path / "twice.jsonl", documents)
    assert main(["data", "import", "toy", str(path), "--heldout-frac", "0.3", "--json"]) == 0
    shown = capsys.readouterr()
    near_copies = json.loads(shown.out)["near_copies"]
    assert near_copies > 100 and f"{near_copies} documents that nearly repeat others" in shown.err
    heldout, training = (open_split("toy", split, BYTES) for split in ("heldout", "train"))
    check = check_overlap(heldout, training)
    assert check.passed and check.measured == 0.0 and heldout.num_documents > 60
    # The same documents, split one by one, fail.
    import_dataset("one", [write_lines(tmp_path / "one.jsonl", documents[::2])], split="train")
    import_dataset("other", [write_lines(tmp_path / "other.jsonl", documents[1::2])], split="heldout")
    check = check_overlap(open_split("other", "heldout", BYTES), open_split("one", "train", BYTES))
    assert not check.passed and check.measured > 0.2 > tolerances.OVERLAP_DOCUMENTS_FRAC


@pytest.mark.parametrize("change", [lambda lines: lines[:-1], lambda lines: [*lines, lines[0]]])
def test_files_that_change_between_the_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    documents = [document for group in families(0, 20) for document in group]
    path = write_lines(tmp_path / "text.jsonl", documents)

    def changing(*args: object) -> object:
        write_lines(path, change(documents))  # type: ignore[operator]
        return heldout_documents(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("data.importing.heldout_documents", changing)
    with pytest.raises(DataError, match="the files changed while they were read"):
        import_dataset("toy", [path], heldout_frac=0.5)
    assert not (tmp_path / "datasets" / "toy").exists()
