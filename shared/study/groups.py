"""Runs grouped into experiments: runs of one group differ in the seed only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import RunError, UserError
from shared.scoring.documents import DocumentScores
from shared.study.scored_run import ScoredRun

ENGINE_KEY = "engine"
# The text and not its name, under which there may be another text tomorrow.
TRAIN_TEXT_KEY = "training text"
# A symbol is the same thing where these are.
VOCABULARY_KEYS = ("vocabulary.kind", "vocabulary.tokenizer")
SAME_TEXT = ("text_sha256", "adaptation", "weights")
SAME_WINDOWS = ("window_symbols", "stride_symbols")
ABSENT = "absent"
SEED_SUFFIX = re.compile(r"-seed[0-9]+$")


@dataclass(frozen=True)
class Group:
    """Runs of one experiment, in order of seed. `label` is unique among the groups compared."""

    label: str
    runs: tuple[ScoredRun, ...]

    @property
    def bpb(self) -> dict[int, float]:
        """Bits per byte by seed."""
        return {run.seed: run.bpb for run in self.runs}

    @property
    def problems(self) -> list[str]:
        return [problem for run in self.runs for problem in run.problems]

    def documents(self, seeds: Sequence[int]) -> list[DocumentScores]:
        """Scores by document of the runs with these seeds; empty if any run kept none."""
        found = [run.documents for run in self.runs if run.seed in seeds]
        kept = [documents for documents in found if documents is not None]
        return kept if len(kept) == len(found) else []


def group_runs(runs: Sequence[ScoredRun]) -> list[Group]:
    """The groups in order of first appearance. Raises RunError for scores that cannot be compared and for
    two runs of one group with the same seed."""
    check_comparable(runs)
    members: dict[tuple[tuple[str, str], ...], list[ScoredRun]] = {}
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


def check_comparable(runs: Sequence[ScoredRun]) -> None:
    """Raise RunError naming the first two runs whose scores were not made of the same text in the same way.

    Windows of two vocabularies are in different units; `shared.study.comparison.notes` says what they hold.
    """
    if not runs:
        raise UserError("no finished run to compare")
    first = runs[0]
    for run in runs[1:]:
        same_symbols = all(run.fields.get(key) == first.fields.get(key) for key in VOCABULARY_KEYS)
        for field in (*SAME_TEXT, *(SAME_WINDOWS if same_symbols else ())):
            expected, found = getattr(first.protocol, field), getattr(run.protocol, field)
            if expected != found:
                texts = f" ({first.protocol.dataset} and {run.protocol.dataset})" if field == "text_sha256" else ""
                raise RunError(
                    f"{first.path} was scored with {field} = {expected}, {run.path} with {found}{texts}: "
                    "such scores cannot be compared"
                )


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """What the specs differ in: field and its value in each group, in order. A field that one does not have is
    `absent` there."""
    traits = [_traits(group.runs[0]) for group in groups]
    keys = dict.fromkeys(key for each in traits for key in each)
    found = {key: [each.get(key, ABSENT) for each in traits] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values[1:])}


def _traits(run: ScoredRun) -> Mapping[str, Any]:
    return {**run.fields, TRAIN_TEXT_KEY: run.train_text, ENGINE_KEY: run.engine}


def _labels(groups: Sequence[Sequence[ScoredRun]]) -> list[str]:
    """A name for each group: that of its run folders without the seed, as a sweep makes them; where the folders
    of a group do not agree in it or two groups do, the first run's folder, or its whole path."""
    stems = [{SEED_SUFFIX.sub("", run.path.name) for run in group} for group in groups]
    candidates = (
        [min(stem) if len(stem) == 1 else group[0].path.name for stem, group in zip(stems, groups, strict=True)],
        [group[0].path.name for group in groups],
    )
    for labels in candidates:
        if len(set(labels)) == len(labels):
            return labels
    return [str(group[0].path) for group in groups]
