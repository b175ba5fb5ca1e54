"""Soups: mixing, choosing on text that was kept out of training, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.selection import selection_part, selection_windows, training_part
from shared.artifact import read_artifact
from shared.errors import DataError, UserError
from shared.runs.run_directory import RunDirectory
from shared.runs.target import Target
from shared.scoring.document import read_score
from shared.scoring.overlap import check_selection, run_hashes
from shared.spec import VocabularySpec, load_spec
from shared.study.soup import check_members, make_soup, mean_weights
from shared.training.run import train_run
from shared.training.sources import open_sources
from tests.command_line import CommandLine, Done
from tests.fake_training import RecordingObserver, tiny_spec
from tests.museum.fake_stream import FakeStream

SHORT = (
    "training.steps=12",
    "model.num_layers=1",
    "data.selection_frac=0.05",
    "evaluation.val_symbols=2048",
    "evaluation.batch_symbols=16384",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that mix: one weak, two alike; and one of another seed."""
    folder = tmp_path_factory.mktemp("runs")
    changes = {
        "weak": "optimizer.matrix_lr=0.0002",
        "good": "optimizer.matrix_lr=0.02",
        "other": "optimizer.matrix_lr=0.015",
        "seed": "training.seed=1",
    }
    for name, change in changes.items():
        train_run(tiny_spec(*SHORT, change), "torch", RecordingObserver(), runs_dir=folder, run_name=name, finish=False)
    return folder


# Text to choose by.


@pytest.mark.parametrize("kind", ["byte256", "byte260"])
@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), frac=st.floats(0.01, 0.9))
def test_a_training_text_is_cut_at_a_document_start(kind: str, sizes: list[int], frac: float):
    vocabulary = VocabularySpec(kind=kind)  # type: ignore[arg-type]
    stream = FakeStream([bytes([65 + index] * size) for index, size in enumerate(sizes)], vocabulary)
    try:
        reserved = selection_part(stream, frac)
    except DataError:
        starts = np.flatnonzero(np.diff(stream.ids, prepend=-1))
        assert not (starts >= max(1, int(stream.num_symbols * (1 - frac)))).any()
        return
    kept = training_part(stream, frac)
    assert kept.num_symbols + reserved.num_symbols == stream.num_symbols
    assert kept.num_bytes + reserved.num_bytes == stream.num_bytes
    assert kept.num_documents + reserved.num_documents == stream.num_documents
    both = np.concatenate([kept.read(0, kept.num_symbols), reserved.read(0, reserved.num_symbols)])
    assert (both == stream.symbols).all()
    assert stream.ids[reserved.first] == stream.ids[reserved.first - 1] + 1
    assert reserved.num_symbols <= frac * stream.num_symbols + 1
    with pytest.raises(IndexError):
        kept.read(kept.num_symbols - 1, 2)


def test_without_a_selection_part_the_training_text_is_the_split_itself():
    stream = FakeStream([b"abc", b"def"])
    assert training_part(stream, 0.0) is stream


def test_a_run_does_not_train_on_what_it_keeps_to_choose_by():
    whole, kept = open_sources(load_spec("tiny")), open_sources(load_spec("tiny", ["data.selection_frac=0.1"]))
    assert 0.85 < kept.train.num_symbols / whole.train.num_symbols < 0.95
    assert kept.loader.windows_per_epoch < whole.loader.windows_per_epoch
    assert kept.train.sha256 != whole.train.sha256 and kept.heldout.sha256 == whole.heldout.sha256


def test_windows_to_choose_by_are_spread_over_the_text():
    spec = load_spec("tiny", ["evaluation.val_symbols=300"])
    rng = np.random.default_rng(0)
    stream = FakeStream([bytes(rng.integers(0, 256, 1000).tolist()) for _ in range(2)])
    windows = selection_windows(spec, stream)
    assert windows.shape == (4, 64) and windows.dtype == np.int32
    assert (windows[0] == stream.symbols[:64]).all() and (windows[2] == stream.symbols[15 * 64 : 16 * 64]).all()
    with pytest.raises(DataError, match="fewer than one window"):
        selection_windows(spec, FakeStream([b"short"]))


# Overlap.


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), power=st.integers(0, 6))
def test_run_hashes_are_equal_where_the_runs_are(seed: int, power: int):
    length = 1 << power
    symbols = np.random.default_rng(seed).integers(0, 3, 200).astype(np.int32)
    hashes = run_hashes(symbols, length)
    runs_ = [symbols[start : start + length].tobytes() for start in range(200 - length + 1)]
    assert len(hashes) == len(runs_) and len(set(hashes.tolist())) == len(set(runs_))
    assert {runs_.index(run) for run in runs_} == {hashes.tolist().index(value) for value in hashes.tolist()}


def test_windows_are_found_at_any_place_and_only_if_they_are_there():
    rng = np.random.default_rng(0)
    stream = FakeStream([bytes(rng.integers(0, 256, 5000).tolist())])
    inside = np.stack([stream.symbols[place : place + 100] for place in (0, 777, 4900)])
    outside = rng.integers(0, 256, (27, 100)).astype(np.int32)
    assert check_selection(outside, stream).measured == 0.0
    mixed = check_selection(np.concatenate([inside, outside]), stream)
    assert mixed.measured == 0.1 and mixed.passed and mixed.warning
    assert not check_selection(inside, stream).passed
    assert check_selection(inside[:, :40], stream).measured == 1.0
    # Of a few symbols any text has them all.
    short = check_selection(inside[:, :5], stream)
    assert short.passed and short.warning and np.isnan(short.measured)


# Mixing.


def weights_of(*values: float) -> list[dict[str, np.ndarray]]:
    return [{"w": np.full((2, 2), value, np.float32)} for value in values]


def test_recipes_by_hand():
    """The measure is the distance from 2: 1 and 3 are equally good, their mean is perfect, 9 spoils it."""

    def measure(weights: dict[str, np.ndarray]) -> float:
        return 1.0 + float(np.abs(weights["w"] - 2.0).mean())

    members = weights_of(9.0, 1.0, 3.0)
    assert make_soup(members, "uniform", None).shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    greedy = make_soup(members, "greedy", measure)  # type: ignore[arg-type]
    assert greedy.shares == (0.0, 0.5, 0.5) and greedy.nats == 1.0 and greedy.member_nats == (8.0, 2.0, 2.0)
    inverse = make_soup(members, "inverse", measure)  # type: ignore[arg-type]
    assert inverse.shares == pytest.approx((0.125 / 1.125, 0.5 / 1.125, 0.5 / 1.125))
    assert sum(inverse.shares) == pytest.approx(1.0)
    assert inverse.weights["w"].dtype == np.float32


def test_a_greedy_soup_is_never_worse_than_its_best_member_where_it_was_chosen():
    rng = np.random.default_rng(0)
    members = [{"w": rng.standard_normal(8).astype(np.float32)} for _ in range(6)]
    soup = make_soup(members, "greedy", lambda weights: float(np.square(weights["w"]).sum()))
    assert soup.member_nats is not None and soup.nats is not None
    assert soup.nats <= min(soup.member_nats)
    assert (soup.weights["w"] == mean_weights(members, soup.shares)["w"]).all()


# The command.


def soup(cli: CommandLine, runs: Path, names: list[str], *words: str) -> Done:
    options = ("--engine", "torch", "--max-symbols", "4096", "--json", "--output", runs / "soup.btw")
    return cli("soup", *(runs / name for name in names), *options, *words)


def test_a_greedy_soup_from_the_command_line(cli: CommandLine, runs: Path):
    done = soup(cli, runs, ["weak", "good", "other"], "--recipe", "greedy")
    document = done.document
    nats = [member["selection_nats"] for member in document["members"]]
    assert done.status == 0, done.err
    assert document["selection"]["name"] == "builtin/train (selection part)"
    assert document["selection_nats"] <= min(nats) and nats[0] == max(nats)
    assert sum(member["share"] for member in document["members"]) == pytest.approx(1.0)
    artifact = read_artifact(runs / "soup.btw")
    assert artifact.header["extra"]["soup"]["members"] == document["members"]
    score = read_score(runs / "soup.score.json")
    assert score.bpb == document["score"]["bpb"] and "selection" in [check.name for check in score.audit.checks]
    assert document["score"]["weights"] == "packed"


def test_a_uniform_soup_is_the_mean(cli: CommandLine, runs: Path):
    done = soup(cli, runs, ["good", "other"])
    assert done.status == 0 and [member["share"] for member in done.document["members"]] == [0.5, 0.5]
    assert "selection" not in [check["name"] for check in done.document["score"]["audit"]["checks"]]


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (["good"], [], "needs two runs or more"),
        (["good", "other", "good"], [], "is given twice"),
        (["good", "seed"], [], "seed has training.seed 1, "),
        (["good", "soup.btw"], [], "an artifact holds packed weights only"),
        (["good", "other"], ["--data", "absent"], "no dataset 'absent'"),
    ],
)
def test_what_does_not_mix_is_refused_in_one_line(
    cli: CommandLine, runs: Path, names: list[str], words: list[str], message: str
):
    (runs / "soup.btw").unlink(missing_ok=True)
    if "soup.btw" in names:
        assert soup(cli, runs, ["good", "other"]).status == 0
    done = soup(cli, runs, names, *words)
    assert done.status == 2 and message in done.told
    assert (runs / "soup.btw").exists() == ("soup.btw" in names)


def test_choosing_needs_text_that_every_member_kept(tmp_path: Path):
    def member(name: str, frac: float, text: str | None = None) -> Target:
        spec = load_spec("tiny", [f"data.selection_frac={frac}"])
        run = RunDirectory(tmp_path / f"{name}-{frac}-{text}")
        run.path.mkdir(exist_ok=True)
        run.write_environment({"data": {"train": {"sha256": text or f"all but the last {frac}"}}})
        return Target(name, spec, {}, "averaged", None, run)

    check_members([member("a", 0.0), member("b", 0.1)], "uniform")
    with pytest.raises(UserError, match="a was trained on all of builtin"):
        check_members([member("a", 0.0), member("b", 0.1)], "greedy")
    with pytest.raises(UserError, match="keep different text"):
        check_members([member("a", 0.2), member("b", 0.1)], "inverse")
    with pytest.raises(UserError, match="keep different text"):
        check_members([member("a", 0.1), member("b", 0.1, "another text of the same name")], "greedy")
    check_members([member("a", 0.1), member("b", 0.1)], "greedy")
