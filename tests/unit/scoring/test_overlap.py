"""Whether held-out text occurs in the training text: how much is seen, and what is said where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.datasets import open_split
from data.folders import datasets_root
from data.selection import selection_part, training_part
from data.sketch import SketchBuilder, sketch_documents
from shared import tolerances
from shared.artifact import write_artifact
from shared.model import random_weights
from shared.runs.run_directory import RunDirectory
from shared.runs.target import Target, load_trained
from shared.scoring.overlap import check_overlap, measure_overlap
from shared.training.run_data import check_target_data, overlap_with_training
from shared.training.sources import open_sources
from tests.datasets import BYTES, write_dataset
from tests.fake_training import tiny_spec
from tests.museum.fake_stream import FakeStream

pytestmark = pytest.mark.usefixtures("datasets")


def texts(seed: int, number: int, count: int = 150) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(3 * count).hex(" ", 3).encode() for _ in range(number)]


@pytest.mark.parametrize("level", [7, 10])
@pytest.mark.parametrize("copies", [0, 1, 2, 20])
def test_one_percent_of_copied_documents_fails_at_any_level(copies: int, level: int) -> None:
    """Whole documents are found however few windows a large training text keeps."""
    heldout = texts(0, 200)
    builder = SketchBuilder(level)
    for document in [*texts(1, 100), *(document.swapcase() for document in heldout[:copies])]:
        builder.write(document)
        builder.end_document()
    training = builder.finish()
    overlap = measure_overlap(sketch_documents(heldout), training)
    assert (overlap.whole, overlap.copied) == (copies, copies)
    assert overlap.copied_frac == pytest.approx(copies / 200, rel=0.5)
    assert (overlap.copied_frac > tolerances.OVERLAP_DOCUMENTS_FRAC) == (copies >= 2)
    check = check_overlap(FakeStream(heldout), SimpleNamespace(name="training", sketch=lambda: training))  # type: ignore[arg-type]
    assert (check.passed, check.warning) == (copies < 2, copies > 0)


def test_windows_show_one_percent_with_the_probability_that_is_stated() -> None:
    """Over 200 texts: the share of those in which no window of a copied hundredth is sampled."""
    missed, stated = [], []
    for seed in range(200):
        heldout = texts(seed, 20, 100)
        part = b"".join(heldout).replace(b" ", b"")
        overlap = measure_overlap(sketch_documents(heldout), sketch_documents([part[: len(part) // 20]]))
        missed.append(overlap.windows_frac == 0.0)
        stated.append(overlap.missed**5)  # Five hundredths are copied.
    assert abs(np.mean(missed) - np.mean(stated)) < 5 * np.sqrt(np.mean(stated) / 200) + 0.01


def test_a_long_document_counts_by_its_bytes_and_a_phrase_does_not_count() -> None:
    heldout = [*texts(0, 999), b" ".join(texts(1, 100)), b"thank you!"]
    overlap = measure_overlap(sketch_documents(heldout), sketch_documents([heldout[-2], heldout[-1]]))
    assert overlap.whole == 2 and overlap.copied_frac == pytest.approx(100 / 1099, rel=0.02)
    phrase = measure_overlap(sketch_documents(heldout), sketch_documents([heldout[-1], *texts(3, 10)]))
    assert phrase.whole == 1 and phrase.copied_frac < 1e-4 < tolerances.OVERLAP_DOCUMENTS_FRAC


def test_what_is_kept_to_choose_by_is_not_trained_on() -> None:
    documents = texts(0, 40)
    stream = FakeStream(documents)
    part, rest = selection_part(stream, 0.25), training_part(stream, 0.25)
    chosen = FakeStream(documents[-part.num_documents :])
    assert 0 < part.num_documents < 40
    assert check_overlap(chosen, rest).measured == 0.0  # type: ignore[arg-type]
    assert check_overlap(chosen, part).measured == 1.0


# Runs whose data changed.


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A run with an artifact, trained on one half of a text, with the other held out."""
    write_dataset(train=texts(0, 20), heldout=texts(1, 20), replace=True)
    spec = tiny_spec("model.num_layers=1", "data.train=toy", "data.heldout=toy", "evaluation.val_symbols=640")
    run = RunDirectory(tmp_path / "runs" / "mine")
    run.path.mkdir(parents=True)
    run.write_spec(spec)
    run.write_environment({"data": open_sources(spec).describe()})
    write_artifact(run.artifact_path, spec, random_weights(spec, 1))
    return load_trained(str(run.path))


def said(target: Target) -> dict[str, tuple[bool, bool, float, str]]:
    heldout = open_split("toy", "heldout", BYTES)
    checks = check_target_data(target, heldout)
    return {check.name: (check.passed, check.warning, check.measured, check.detail) for check in checks}


def test_the_data_of_the_run_needs_no_word(target: Target) -> None:
    assert said(target)["overlap"][:3] == (True, False, 0.0) and list(said(target)) == ["overlap"]


def test_another_text_under_the_same_names(target: Target) -> None:
    before = open_split("toy", "train", BYTES).sha256[:16]
    halves = [*texts(0, 10), *texts(1, 10)], [*texts(0, 20)[10:], *texts(1, 20)[10:]]
    write_dataset(train=halves[0], heldout=halves[1], replace=True)
    (passed, warning, measured, detail) = said(target)["run_data"]
    assert passed and warning and measured == 2.0
    now = open_split("toy", "train", BYTES).sha256[:16]
    assert f"trained on toy/train {before}; toy/train is now a different text, {now}" in detail and "\n" not in detail
    passed, warning, measured, detail = said(target)["overlap"]
    assert passed and warning and np.isnan(measured) and detail.startswith("not measured: ")


def test_another_held_out_text_alone_is_said_and_compared(target: Target) -> None:
    write_dataset(train=texts(0, 20), heldout=texts(0, 20)[:5], replace=True)
    found = said(target)
    assert found["run_data"][:3] == (True, True, 1.0) and "its held-out text was toy/heldout" in found["run_data"][3]
    assert found["overlap"][:3] == (False, True, 1.0)


@pytest.mark.parametrize("content", ["missing", "no JSON", "{}", '{"data": {"train": 3}}'])
def test_a_run_that_does_not_say_what_it_was_trained_on(target: Target, content: str) -> None:
    assert target.run is not None
    target.run.environment_path.unlink()
    if content != "missing":
        target.run.environment_path.write_text(content)
    assert all(passed and warning for passed, warning, _, _ in said(target).values())
    assert "does not say what the run was trained on" in said(target)["run_data"][3]


def test_training_text_that_is_gone(target: Target) -> None:
    heldout = open_split("toy", "heldout", BYTES)
    (datasets_root() / "toy" / "train_000000.bin").unlink()
    run_data, overlap = check_target_data(target, heldout)
    assert run_data.warning and "cannot be opened" in run_data.detail and overlap.warning
    check = overlap_with_training(target.spec, heldout)
    assert check.passed and check.warning and json.dumps(check.detail)
