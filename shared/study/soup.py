"""Soups: one model whose weights are the weighted mean of those of several runs (docs/techniques.md 10.3).

Runs can be mixed if they share their function and their initial weights: the same spec_id and training.seed, with
other learning rates, decays or lengths. How much of each goes in is chosen by text that none of them was trained on
and that is not the text that is scored: the selection part of the training text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.datasets import open_split
from data.selection import selection_part, selection_windows
from shared.engine.oracle import Oracle
from shared.engine.package import create_engine
from shared.engine.protocol import Scorer, Weights
from shared.errors import RunError, UserError
from shared.runs.target import Target
from shared.spec import Spec, spec_id

Recipe = Literal["uniform", "inverse", "greedy"]
RECIPES: tuple[Recipe, ...] = ("uniform", "inverse", "greedy")

# Mean nats per symbol of weights on the text to choose by.
Measure = Callable[[Weights], float]


@dataclass(frozen=True)
class Selection:
    """Windows to choose by, [N, seq_len] int32, with the name and hash of the text they are from."""

    name: str
    sha256: str
    windows: np.ndarray

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "sha256": self.sha256, "symbols": int(self.windows.size)}


@dataclass(frozen=True)
class Soup:
    """The mixed weights, the share of each member (they sum to 1), and, where there is text to choose by, the mean
    nats per symbol of each member and of the soup on it."""

    weights: dict[str, np.ndarray]
    shares: tuple[float, ...]
    member_nats: tuple[float, ...] | None
    nats: float | None


def check_members(members: Sequence[Target], recipe: Recipe) -> None:
    """Raise UserError if the members cannot be mixed, or if choosing between them would be a leak."""
    if len(members) < 2:
        raise UserError(f"a soup needs two runs or more, got {len(members)}")
    first, folders = members[0], set[Path]()
    for member in members:
        if member.run is None:
            raise UserError(f"{member.source}: a soup is made of runs with checkpoints, this is an artifact")
        folder = member.run.path.resolve()
        if folder in folders:
            raise UserError(f"{member.source} is given twice: a run has one share of a soup")
        folders.add(folder)
        for what, value, expected in (
            ("spec_id", spec_id(member.spec), spec_id(first.spec)),
            ("training.seed", member.spec.training.seed, first.spec.training.seed),
        ):
            if value != expected:
                raise UserError(f"{member.source} has {what} {value}, {first.source} has {expected}: they do not mix")
    if recipe == "uniform":
        return
    for member in members:
        if member.spec.data.selection_frac == 0.0:
            raise UserError(
                f"{member.source} was trained on all of {member.spec.data.train}: to choose weights, train with "
                "data.selection_frac above 0, or use the uniform recipe"
            )
        assert member.run is not None and first.run is not None
        if member.run.read_train_text() != first.run.read_train_text():
            raise UserError(
                f"{member.source} and {first.source} keep different text to choose by: what one kept, the other may "
                "have been trained on"
            )


def open_selection(spec: Spec) -> Selection | None:
    """The text that a spec keeps to choose by, None if it keeps none. Raises DataError."""
    if spec.data.selection_frac == 0.0:
        return None
    train = open_split(spec.data.train, "train", spec.vocabulary)
    part = selection_part(train, spec.data.selection_frac)
    return Selection(part.name, part.sha256, selection_windows(spec, part))


def make_measure(engine: str, spec: Spec, selection: Selection) -> Measure:
    """A function from weights to their mean nats per symbol, on the named engine (or `numpy`)."""
    trained = None if engine == "numpy" else create_engine(engine, spec)
    rows = max(1, spec.evaluation.batch_symbols // spec.model.seq_len)

    def measure(weights: Weights) -> float:
        if trained is not None:
            trained.initialise(weights)
        scorer: Scorer = trained if trained is not None else Oracle(spec, weights)
        windows = selection.windows
        nats = [scorer.score(windows[first : first + rows]) for first in range(0, len(windows), rows)]
        mean = float(np.mean(np.concatenate(nats), dtype=np.float64))
        if not np.isfinite(mean):
            raise RunError(f"{selection.name}: the score of the weights is {mean}, not a number")
        return mean

    return measure


def make_soup(members: Sequence[Weights], recipe: Recipe, measure: Measure | None) -> Soup:
    """Mix weights by a recipe.

    uniform: all alike. inverse: in proportion to 1 / nats. greedy: the best alone, then each next best joins in equal
    parts if the mixture does not get worse by it. `measure` may be None for uniform only.
    """
    assert measure is not None or recipe == "uniform", "a recipe that chooses needs text to choose by"
    nats = None if measure is None else tuple(measure(weights) for weights in members)
    if recipe == "uniform" or nats is None or measure is None:
        shares = np.ones(len(members))
    elif recipe == "inverse":
        shares = 1.0 / np.array(nats)
    else:
        shares = _greedy_shares(members, nats, measure)
    shares = shares / shares.sum()
    mixed = mean_weights(members, shares)
    return Soup(mixed, tuple(map(float, shares)), nats, None if measure is None else measure(mixed))


def mean_weights(members: Sequence[Weights], shares: Sequence[float] | np.ndarray) -> dict[str, np.ndarray]:
    """The weighted mean by parameter name, summed in float64 in the order of the members: float32."""
    mixed: dict[str, np.ndarray] = {}
    for name, value in members[0].items():
        total = np.zeros(value.shape, np.float64)
        for weights, share in zip(members, shares, strict=True):
            total += float(share) * weights[name].astype(np.float64)
        mixed[name] = total.astype(np.float32)
    return mixed


def _greedy_shares(members: Sequence[Weights], nats: Sequence[float], measure: Measure) -> np.ndarray:
    """1 for each member that is taken, else 0."""
    order = sorted(range(len(members)), key=lambda index: nats[index])
    taken, best = [order[0]], nats[order[0]]
    for index in order[1:]:
        tried = [*taken, index]
        mixed = measure(mean_weights([members[i] for i in tried], np.full(len(tried), 1.0 / len(tried))))
        if mixed <= best:
            taken, best = tried, mixed
    shares = np.zeros(len(members))
    shares[taken] = 1.0
    return shares
