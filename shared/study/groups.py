"""Runs grouped into experiments: runs of one group differ in the seed only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import RunError, UserError
from shared.files import check_regular
from shared.parsing import read_json_object
from shared.runs.finished_run import FinishedRun, read_finished
from shared.runs.run_directory import RunDirectory
from shared.runs.target import RUNS, run_named, runs_in
from shared.scoring.documents import DocumentScores
from shared.spec.difference import FREE_IN_EXPERIMENT, fields

ENGINE_KEY = "engine"
TRAIN_TEXT_KEY = "training text"
SAME_TEXT = ("text_sha256", "adaptation", "weights")
SAME_WINDOWS = ("window_symbols", "stride_symbols")
ABSENT = "absent"
SEED_SUFFIX = re.compile(r"-seed[0-9]+$")
# A record is known by this file; its runs are in folders of these names.
SUBMISSION_FILE = "submission.json"
SWEEP_FILE = "sweep.json"
SEED_FOLDER = re.compile(r"seed[0-9]+")


@dataclass(frozen=True)
class Group:
    """Runs of one experiment, in order of seed. `label` is unique among the groups compared."""

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def bpb(self) -> dict[int, float]:
        """Bits per byte by seed."""
        return {run.seed: run.score.bpb for run in self.runs}

    @property
    def problems(self) -> list[str]:
        return [problem for run in self.runs for problem in run.problems]

    def documents(self, seeds: Sequence[int]) -> list[DocumentScores]:
        """Scores by document of the runs with these seeds; empty if any run kept none."""
        found = [run.documents for run in self.runs if run.seed in seeds]
        kept = [documents for documents in found if documents is not None]
        return kept if len(kept) == len(found) else []


def group_runs(runs: Sequence[FinishedRun]) -> list[Group]:
    """The groups in order of first appearance. Raises RunError for scores that cannot be compared and for
    two runs of one group with the same seed."""
    check_comparable(runs)
    members: dict[tuple[tuple[str, str], ...], list[FinishedRun]] = {}
    for run in runs:
        members.setdefault(tuple(sorted((key, repr(value)) for key, value in _traits(run).items())), []).append(run)
    groups = [sorted(group, key=lambda run: run.seed) for group in members.values()]
    for group in groups:
        for first, second in itertools.pairwise(group):
            if first.seed == second.seed:
                raise RunError(
                    f"{first.path} and {second.path} are the same experiment with the same seed {first.seed}"
                )
    labels = _labels(groups)
    return [Group(label, tuple(group)) for label, group in zip(labels, groups, strict=True)]


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raise RunError naming the first two runs whose scores were not made of the same text in the same way.

    Windows of two vocabularies are in different units; `shared.study.comparison.notes` says what they hold.
    """
    if not runs:
        raise UserError("no finished run to compare")
    first = runs[0]
    expected = first.score.protocol()
    for run in runs[1:]:
        found, same_symbols = run.score.protocol(), _symbols(run) == _symbols(first)
        for field in (*SAME_TEXT, *(SAME_WINDOWS if same_symbols else ())):
            if expected[field] != found[field]:
                texts = f" ({expected['dataset']} and {found['dataset']})" if field == "text_sha256" else ""
                raise RunError(
                    f"{first.path} was scored with {field} = {expected[field]}, {run.path} with {found[field]}{texts}: "
                    "such scores cannot be compared"
                )


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """The fields in which the specs differ, with the value in each group, in order. A field that one does not have is
    `absent` there."""
    traits = [_traits(group.runs[0]) for group in groups]
    keys = dict.fromkeys(key for each in traits for key in each)
    found = {key: [each.get(key, ABSENT) for each in traits] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values[1:])}


def find_finished_runs(words: Sequence[str], runs_dir: Path = RUNS) -> list[FinishedRun]:
    """Read the finished runs that the words of a command line name, each once: runs by name or path, and folders of
    runs (a sweep's or a record's), which stand for the finished runs in them. Raises UserError for a word that names
    none."""
    runs: dict[Path, RunDirectory] = {}
    for run in itertools.chain.from_iterable(_runs_of(word, runs_dir) for word in words):
        runs.setdefault(run.path.resolve(), run)
    return [read_finished(run) for run in runs.values()]


def _runs_of(word: str, runs_dir: Path) -> list[RunDirectory]:
    """The run of that name, or the finished runs of that folder in order of name, a sweep's baseline first."""
    run = run_named(word, runs_dir)
    if run.spec_path.is_file() and not (run.path / SUBMISSION_FILE).is_file():
        return [run]
    finished = [inner for inner in runs_in(run) if inner.score_path.is_file()]
    if not finished:
        raise UserError(f"{run.path}: neither a run nor a folder of finished runs")
    baseline = _baseline_of_sweep(run.path / SWEEP_FILE)
    return sorted(finished, key=lambda inner: _stem(inner.path) != baseline)


def _baseline_of_sweep(path: Path) -> str | None:
    """The label that a sweep compared the others with; None where it has compared nothing."""
    try:
        check_regular(path)
        return str(read_json_object(path)["comparison"]["baseline"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _symbols(run: FinishedRun) -> tuple[str, str]:
    """A symbol is the same thing where these are."""
    return run.spec.vocabulary.kind, run.spec.vocabulary.tokenizer


def _traits(run: FinishedRun) -> Mapping[str, Any]:
    return {**fields(run.spec, FREE_IN_EXPERIMENT), TRAIN_TEXT_KEY: run.train_text, ENGINE_KEY: run.score.engine}


def _labels(groups: Sequence[Sequence[FinishedRun]]) -> list[str]:
    """A name for each group: that of its run folders without the seed, as a sweep makes them, or that of its record;
    where the folders of a group do not agree in it or two groups do, the first run's folder, or its whole path."""
    stems = [{_stem(run.path) for run in group} for group in groups]
    candidates = (
        [min(stem) if len(stem) == 1 else group[0].path.name for stem, group in zip(stems, groups, strict=True)],
        [group[0].path.name for group in groups],
    )
    for labels in candidates:
        if len(set(labels)) == len(labels):
            return labels
    return [str(group[0].path) for group in groups]


def _stem(path: Path) -> str:
    """The name of a run without its seed: x of x-seed7, and of seed7 in the record x."""
    return path.resolve().parent.name if SEED_FOLDER.fullmatch(path.name) else SEED_SUFFIX.sub("", path.name)
