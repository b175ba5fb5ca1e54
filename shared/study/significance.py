"""Whether a record is beaten: better by 0.005 nats per symbol at p < 0.01 (docs/techniques.md 1.6).

The challenge asks this of seeds alone, because the text is fixed: it does not ask whether other text would give the
same, as the verdicts of `shared.study.comparison` do.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shared.scoring.document import ScoreDocument
from shared.scoring.statistics import FEWEST_SEEDS, Difference, Summary, difference, summarise
from shared.study.groups import Group

# By how much a record must be better, and the p value that must not be reached.
RECORD_NATS, RECORD_P = 0.005, 0.01
LEVEL = 0.99

Answer = Literal["beaten", "not beaten", "too few seeds", "does not count"]


@dataclass(frozen=True)
class Significance:
    """The answer, and what it rests on: `new` and `old` are over the seeds that were compared, all in bits per byte."""

    new_label: str
    old_label: str
    new: Summary
    old: Summary
    difference: Difference
    margin_bpb: float
    answer: Answer

    @property
    def text(self) -> str:
        """One line with every figure."""
        question = f"no verdict on whether {self.old_label} is beaten by {self.new_label}"
        if self.answer == "too few seeds":
            return f"{question}: n = {self.difference.n}, at least {FEWEST_SEEDS} seeds are needed on both sides"
        if self.answer == "does not count":
            return f"{question}: the scores of one do not count"
        assert self.difference.probability is not None
        return (
            f"{self.old_label} is {self.answer} by {self.new_label}: mean {_figures(self.new)} against "
            f"{_figures(self.old)}, difference {self.difference.mean:+.4f}; better by more than "
            f"{self.margin_bpb:.4f} bits per byte ({RECORD_NATS:g} nats per symbol): p = "
            f"{self.difference.probability:.3g} (one-sided {_test(self.difference)}), p < {RECORD_P:g} is needed"
        )

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "answer": self.answer,
            "new": self.new_label,
            "old": self.old_label,
            "new_bpb": asdict(self.new),
            "old_bpb": asdict(self.old),
            "difference_bpb": asdict(self.difference),
            "margin_nats": RECORD_NATS,
            "margin_bpb": self.margin_bpb,
            "p_needed": RECORD_P,
        }


def significance(new: Group, old: Group) -> Significance:
    """Ask whether `old` is beaten by `new`, whose scores can be compared (`shared.study.groups.check_comparable`)."""
    margin_bpb = nats_in_bpb(RECORD_NATS, old.runs[0].score)
    found = difference(new.bpb, old.bpb, LEVEL, margin_bpb)
    new_seeds, old_seeds = compared_seeds(found, new, old)
    return Significance(
        new.label,
        old.label,
        summarise([new.bpb[seed] for seed in new_seeds], LEVEL),
        summarise([old.bpb[seed] for seed in old_seeds], LEVEL),
        found,
        margin_bpb,
        _answer(found, bool(new.problems or old.problems)),
    )


def nats_in_bpb(nats_per_symbol: float, score: ScoreDocument) -> float:
    """Nats per symbol of the score as bits per byte: what they are depends on the bytes that a symbol stands for."""
    return nats_per_symbol / math.log(2.0) * score.symbols / score.bytes


def compared_seeds(found: Difference, new: Group, old: Group) -> tuple[list[int], list[int]]:
    """The seeds of both sides that the difference is over: those that they share if it is paired, otherwise all."""
    shared = sorted(new.bpb.keys() & old.bpb.keys())
    paired = found.method == "paired" or (found.method == "none" and shared)
    return (shared, shared) if paired else (list(new.bpb), list(old.bpb))


def _answer(found: Difference, problems: bool) -> Answer:
    if found.n < FEWEST_SEEDS or found.probability is None:
        return "too few seeds"
    if problems:
        return "does not count"
    return "beaten" if found.probability < RECORD_P else "not beaten"


def _figures(summary: Summary) -> str:
    return f"{summary.mean:.4f} (sd {summary.std:.4f}, n = {summary.n})"


def _test(found: Difference) -> str:
    name = "paired t" if found.method == "paired" else "Welch t"
    return f"{name}, {found.degrees} degrees of freedom"
