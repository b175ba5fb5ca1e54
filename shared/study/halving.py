"""Successive halving: the rungs of a sweep, who is stopped at one, and what that saved (docs/techniques.md 12.8)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from shared.scoring.statistics import Difference, difference

# The share that stays is 1 / ETA at every rung.
ETA = 2
# Of the interval that keeps a group. A stop is no verdict, and can be taken back: it asks for less than a comparison.
LEVEL = 0.95
# No rung before this fraction of the budget: rates still rise there, and ranks say little about the end.
FIRST_FRAC = 0.1

Decision = Literal["leads", "stays", "baseline", "undecided", "stopped"]
REASONS: Mapping[Decision, str] = {
    "leads": "leads",
    "stays": "stays by rank",
    "baseline": "stays as the baseline",
    "undecided": "stays, could still win",
    "stopped": "stopped",
}


@dataclass(frozen=True)
class Halving:
    """How a sweep is halved: the best 1 / `eta` of the groups stay at a rung, and of the others those whose difference
    from the best has an interval at `level` that reaches 0. At level 0 rank alone decides."""

    eta: int = ETA
    level: float = LEVEL

    def rungs(self, groups: int) -> list[tuple[float, int]]:
        """(fraction of the budget, how many groups stay by rank) of every rung, for so many groups at first."""
        found, left, cuts = [], groups, 0
        while left > 1:
            left, cuts = math.ceil(left / self.eta), cuts + 1
        # As many as leave one, or as fit behind FIRST_FRAC: then several are left.
        cuts = min(cuts, max(1, math.floor(math.log(1.0 / FIRST_FRAC, self.eta))))
        for cut in range(1, cuts + 1):
            found.append((float(self.eta) ** (cut - cuts - 1), math.ceil(groups / self.eta**cut)))
        return found


@dataclass(frozen=True)
class Standing:
    """A group at a rung: `n` validations with this `mean` in bits per byte, and its difference from the group that
    leads, None for that itself."""

    label: str
    n: int
    mean: float
    difference: Difference | None
    decision: Decision

    @property
    def text(self) -> str:
        """`wide: 2.1034, +0.0312 behind (+0.0201 to +0.0423): stopped`."""
        found, words = self.difference, f"{self.label}: {self.mean:.4f}"
        if found is not None:
            words += f", {found.mean:+.4f}"
            words += f" ({found.interval.low:+.4f} to {found.interval.high:+.4f})" if found.interval else ""
        by_rank = self.decision == "stopped" and (found is None or found.interval is None or found.interval.low <= 0.0)
        return f"{words}: {REASONS[self.decision]}{' by rank alone' if by_rank else ''}"


@dataclass(frozen=True)
class Rung:
    """The decisions at `budget_frac` of the budget, best group first."""

    budget_frac: float
    standings: tuple[Standing, ...]

    @property
    def stopped(self) -> list[str]:
        """Labels of the groups that end here."""
        return [standing.label for standing in self.standings if standing.decision == "stopped"]

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"budget_frac": self.budget_frac, "groups": [asdict(standing) for standing in self.standings]}


@dataclass(frozen=True)
class Saved:
    """Steps and training seconds that the stopped runs did not take, the seconds by their own pace; training seconds of
    all runs; and what pausing cost beside training: starting, compiling, validating."""

    runs: int
    steps: int
    seconds: float
    trained_s: float
    pauses_s: float

    @property
    def share(self) -> float:
        """Of the training seconds that the sweep would have taken."""
        whole = self.seconds + self.trained_s
        return self.seconds / whole if whole else 0.0

    @property
    def text(self) -> str:
        return (
            f"halving stopped {self.runs} runs and saved {self.steps:,} steps, about {self.seconds:,.0f} s or "
            f"{self.share:.0%} of the training; the pauses cost {self.pauses_s:,.0f} s to start, compile and validate"
        )


@dataclass(frozen=True)
class Halved:
    """The rungs of a sweep as far as it went, and what it saved."""

    how: Halving
    rungs: tuple[Rung, ...]
    saved: Saved

    def lines(self) -> list[str]:
        """For people, below the comparison."""
        lines = []
        for rung in self.rungs:
            lines += [f"at {rung.budget_frac:.3g} of the budget, {standing.text}" for standing in rung.standings]
        return [*lines, self.saved.text]

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "eta": self.how.eta,
            "confidence": self.how.level,
            "rungs": [rung.to_document() for rung in self.rungs],
            "saved": {**asdict(self.saved), "share": self.saved.share},
        }


def decide(values: Mapping[str, Mapping[int, float]], keep: int, baseline: str, how: Halving) -> tuple[Standing, ...]:
    """Rank groups by the mean of their validations (label -> seed -> bits per byte, none of them empty) and say who
    continues: the best `keep`, the baseline, and whoever could still win."""
    ranked = sorted(values, key=lambda label: fmean(values[label].values()))
    best = values[ranked[0]]
    standings = []
    for rank, label in enumerate(ranked):
        found = difference(values[label], best, how.level or LEVEL) if rank else None
        decision = _decision(rank, keep, label == baseline, found, how.level)
        standings.append(Standing(label, len(values[label]), fmean(values[label].values()), found, decision))
    return tuple(standings)


def _decision(rank: int, keep: int, is_baseline: bool, found: Difference | None, level: float) -> Decision:
    if found is None:
        return "leads"
    if rank < keep:
        return "stays"
    if is_baseline:
        return "baseline"
    undecided = level > 0.0 and found.interval is not None and found.interval.low <= 0.0
    return "undecided" if undecided else "stopped"
