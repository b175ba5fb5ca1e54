"""Groups of runs compared with a baseline: means, differences with intervals, and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shared.errors import UserError
from shared.scoring.confidence import Confidence
from shared.scoring.statistics import (
    FEWEST_SEEDS,
    Difference,
    Interval,
    Summary,
    difference,
    document_interval,
    summarise,
)
from shared.study.groups import Group, differences
from shared.study.significance import Significance, compared_seeds, nats_in_bpb, significance

# docs/techniques.md 1.6 asks for t at .995.
LEVEL = 0.99
# Runs of one experiment that were given the same time and differ by more than this share in speed did not
# have the machine to themselves.
SPEED_SPREAD_FRAC = 0.1

Verdict = Literal["baseline", "better", "worse", "undecided", "too few seeds", "does not count"]


@dataclass(frozen=True)
class ComparedGroup:
    """One group against the baseline; the baseline's own row has no difference. `over_documents` is None
    where a run kept no scores by document, `significance` says whether the group beats the baseline as a record must.

    `summary` is of the seeds that were compared, those that both groups have if there are any such, and
    `baseline_summary` that of the baseline over the seeds it was compared with: their means differ by `difference`.
    """

    group: Group
    summary: Summary
    baseline_summary: Summary
    difference: Difference | None
    over_documents: Confidence | None
    verdict: Verdict
    significance: Significance | None = None

    @property
    def steps_per_s(self) -> tuple[float, float]:
        """Steps per second of the slowest and the fastest run."""
        speeds = [run.steps_per_s for run in self.group.runs]
        return min(speeds), max(speeds)


@dataclass(frozen=True)
class Comparison:
    """`rows` begin with the baseline. `margin_bpb` is by how much a group must be better for the one-sided test."""

    rows: tuple[ComparedGroup, ...]
    level: float
    margin_bpb: float

    @property
    def problems(self) -> list[str]:
        """Why some scores do not count, one line each."""
        return [problem for row in self.rows for problem in row.group.problems]

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "baseline": self.rows[0].group.label,
            "confidence": self.level,
            "margin_bpb": self.margin_bpb,
            "protocol": self.rows[0].group.runs[0].score.protocol(),
            "differing_fields": differences([row.group for row in self.rows]),
            "groups": [_row_document(row) for row in self.rows],
            "notes": notes(self),
            "problems": self.problems,
        }


def compare_groups(
    groups: Sequence[Group], *, baseline: str | None = None, level: float = LEVEL, margin_nats: float = 0.0
) -> Comparison:
    """Compare every group with the one labelled `baseline`, by default the first.

    `margin_nats` is in nats per symbol of the baseline (docs/techniques.md 1.1: a record asks for 0.005). Raises
    UserError for a label that no group has.
    """
    labels = [group.label for group in groups]
    if baseline is not None and baseline not in labels:
        raise UserError(f"--baseline {baseline!r}: no such group; groups: {', '.join(labels)}")
    old = groups[0] if baseline is None else groups[labels.index(baseline)]
    margin_bpb = nats_in_bpb(margin_nats, old.runs[0].score)
    others = [_row(group, old, level, margin_bpb) for group in groups if group is not old]
    return Comparison((_baseline_row(old, others, level), *others), level, margin_bpb)


def notes(comparison: Comparison) -> list[str]:
    """Facts that a reader must know in addition to the figures, one a line."""
    rows, level = comparison.rows, comparison.level
    lines = []
    compared = [row.difference for row in rows if row.difference is not None and row.difference.interval is not None]
    if any(found.n < FEWEST_SEEDS for found in (row.difference for row in rows) if found is not None):
        lines.append(f"fewer than {FEWEST_SEEDS} seeds decide nothing: a verdict needs {FEWEST_SEEDS} on both sides")
    if len(compared) > 1:
        lines.append(
            f"{len(compared)} comparisons at {level:.0%} each: the chance that at least one interval misses by luck "
            f"is up to {min(1.0, len(compared) * (1.0 - level)):.0%}"
        )
    if any(found.method == "welch" for found in compared):
        lines.append("groups that do not share their seeds are compared unpaired (Welch), which has less power")
    if any(row.difference is not None and row.over_documents is None for row in rows):
        lines.append("no interval over documents where a run kept no scores by document")
    reasons = {row.over_documents.reason for row in rows if row.over_documents is not None}
    lines += [f"no interval over documents, so nothing is decided: {reason}" for reason in reasons if reason]
    return [
        *lines,
        *_seed_notes(rows),
        *_text_notes(rows),
        *_window_notes(rows),
        *_load_notes(rows),
        *_device_notes(rows),
    ]


def _seed_notes(rows: Sequence[ComparedGroup]) -> list[str]:
    """Means are over the seeds that were compared, so that a mean and a difference never contradict each other."""
    lines = []
    if any(row.summary.n < len(row.group.runs) for row in rows):
        lines.append("means and deviations are over the seeds that were compared")
    baseline = rows[0]
    lines += [
        f"{row.group.label} is compared with {row.baseline_summary.n} seeds of {baseline.group.label}, whose mean is "
        f"{row.baseline_summary.mean:.4f}"
        for row in rows[1:]
        if row.baseline_summary != baseline.summary
    ]
    return lines


def _text_notes(rows: Sequence[ComparedGroup]) -> list[str]:
    """Another training text is another experiment, also under the same name."""
    runs = [row.group.runs[0] for row in rows]
    if len({run.train_text for run in runs}) == 1:
        return []
    texts = (
        f"{row.group.label} on {run.spec.data.train} (sha256 {run.train_text[:16]})"
        for row, run in zip(rows, runs, strict=True)
    )
    return [f"the training texts differ: {', '.join(texts)}"]


def _window_notes(rows: Sequence[ComparedGroup]) -> list[str]:
    """Symbols of different vocabularies hold different amounts of text, and more context is an advantage."""
    scores = [row.group.runs[0].score for row in rows]
    if len({(score.window_symbols, score.stride_symbols) for score in scores}) == 1 and (
        len({score.bytes / score.symbols for score in scores}) == 1
    ):
        return []
    windows = (
        f"{row.group.label} {score.window_symbols * score.bytes / score.symbols:,.0f}"
        for row, score in zip(rows, scores, strict=True)
    )
    return [f"the vocabularies differ; mean bytes of text in a scored window: {', '.join(windows)}"]


def _load_notes(rows: Sequence[ComparedGroup]) -> list[str]:
    """Equal time is equal compute only on an equally loaded machine."""
    lines = []
    for row in rows:
        slow, fast = row.steps_per_s
        if row.group.runs[0].spec.schedule.driver == "time" and slow > 0 and fast > (1.0 + SPEED_SPREAD_FRAC) * slow:
            lines.append(
                f"{row.group.label}: {slow:.3g} to {fast:.3g} steps per second between seeds: the machine was not "
                "equally loaded, so equal time was not equal compute"
            )
    return lines


def _device_notes(rows: Sequence[ComparedGroup]) -> list[str]:
    devices = sorted({run.device for row in rows for run in row.group.runs})
    return [f"the runs were made on different devices: {'; '.join(devices)}"] if len(devices) > 1 else []


def _baseline_row(old: Group, others: Sequence[ComparedGroup], level: float) -> ComparedGroup:
    """Summarise the baseline over the seeds that every other was compared with, or over its own if these differ."""
    compared = [row.baseline_summary for row in others]
    alike = bool(compared) and all(summary == compared[0] for summary in compared)
    summary = compared[0] if alike else summarise(list(old.bpb.values()), level)
    return ComparedGroup(old, summary, summary, None, None, _counts(old) or "baseline")


def _row(group: Group, old: Group, level: float, margin_bpb: float) -> ComparedGroup:
    found = difference(group.bpb, old.bpb, level, margin_bpb)
    new_seeds, old_seeds = compared_seeds(found, group, old)
    over_documents = document_interval(group.documents(new_seeds), old.documents(old_seeds), level)
    verdict = _counts(group) or _counts(old) or _verdict(found, over_documents)
    summary = summarise([group.bpb[seed] for seed in new_seeds], level)
    baseline_summary = summarise([old.bpb[seed] for seed in old_seeds], level)
    record = significance(group, old)
    return ComparedGroup(group, summary, baseline_summary, found, over_documents, verdict, record)


def _counts(group: Group) -> Verdict | None:
    """The verdict on a score with a leak or an artifact over the limit: it does not count."""
    return "does not count" if group.problems else None


def _verdict(found: Difference, over_documents: Confidence | None) -> Verdict:
    """Better or worse only if the interval over seeds and the one over documents lie on that side of zero; runs that
    kept no scores by document are judged by their seeds alone."""
    if found.n < FEWEST_SEEDS or found.interval is None:
        return "too few seeds"
    intervals = [found.interval]
    if over_documents is not None:
        if over_documents.low_bpb is None or over_documents.high_bpb is None:
            return "undecided"
        intervals.append(Interval(over_documents.low_bpb, over_documents.high_bpb))
    if all(interval.high < 0.0 for interval in intervals):
        return "better"
    if all(interval.low > 0.0 for interval in intervals):
        return "worse"
    return "undecided"


def _row_document(row: ComparedGroup) -> dict[str, Any]:
    slow, fast = row.steps_per_s
    return {
        "label": row.group.label,
        "verdict": row.verdict,
        "bpb": asdict(row.summary),
        "baseline_bpb": asdict(row.baseline_summary),
        "difference_bpb": asdict(row.difference) if row.difference is not None else None,
        "over_documents": asdict(row.over_documents) if row.over_documents is not None else None,
        "significance": row.significance.to_document() if row.significance is not None else None,
        "steps_per_s": {"slowest": slow, "fastest": fast},
        "runs": [
            {
                "run": str(run.path),
                "seed": run.seed,
                "bpb": run.score.bpb,
                "steps": run.steps,
                "train_s": run.train_s,
                "symbols_per_s": run.steps_per_s * run.spec.training.batch_symbols,
                "parameters": run.score.parameters,
                "total_bytes": run.score.total_bytes,
                "engine": run.score.engine,
                "device": run.device,
            }
            for run in row.group.runs
        ],
    }
