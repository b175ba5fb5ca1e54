"""The sections of a report of several runs: scores, differences with intervals, what the specs differ in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.runs.metrics import number
from shared.spec.difference import SEED_KEY, fields
from shared.units import counted, format_clock
from shared.views.report.bars import Mark, mark_chart
from shared.views.report.contents import ReportedRun
from shared.views.report.markup import Element, element, section, table

# Beside the seed, what names a run says nothing about what it trains.
NAMES = frozenset({"name", SEED_KEY})
ABSENT = "absent"


@dataclass(frozen=True)
class ComparisonTables:
    """A comparison as a page shows it: a table, its differences from the baseline as marks, and notes. Without rows,
    `notes` say why there is none."""

    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    marks: Sequence[Mark] = ()
    marks_are: str = ""
    notes: Sequence[str] = field(default_factory=list)


def runs_section(runs: Sequence[ReportedRun]) -> Element:
    """One line for each run."""
    headings = ("run", "bits per byte", "interval", "validation", "steps", "training", "bytes", "engine", "state")
    return section("Runs", table(headings, [_run_row(run) for run in runs], numeric=range(1, 7)))


def comparison_section(comparison: ComparisonTables) -> Element:
    """The comparison, or why there is none."""
    found = section("Comparison")
    if comparison.marks:
        found.append(element("p", comparison.marks_are, class_="name"))
        found.append(mark_chart(comparison.marks, comparison.marks_are))
    if comparison.rows:
        found.append(table(comparison.headings, comparison.rows, numeric=range(1, len(comparison.headings) - 1)))
    found.extend(element("p", note, class_="quiet") for note in comparison.notes)
    return found


def differences_section(runs: Sequence[ReportedRun]) -> Element:
    """The fields that the specs differ in, one column for the runs of each spec; their seeds may differ."""
    variants: dict[str, tuple[dict[str, Any], list[ReportedRun]]] = {}
    for run in runs:
        values = fields(run.files.spec, NAMES)
        variants.setdefault(json.dumps(values, sort_keys=True), (values, []))[1].append(run)
    specs = [values for values, _ in variants.values()]
    keys = dict.fromkeys(key for values in specs for key in values)
    rows = []
    for key in keys:
        found = [values.get(key, ABSENT) for values in specs]
        if any(value != found[0] for value in found[1:]):
            rows.append((key, *(json.dumps(value) if not isinstance(value, str) else value for value in found)))
    title = "What the specs differ in"
    if not rows:
        seeds = ", ".join(str(run.files.seed) for run in runs)
        return section(title, element("p", f"Nothing but the seed: {seeds}."))
    names = [_variant_name(members) for _, members in variants.values()]
    return section(title, table(("field", *names), rows, class_="words"))


def _variant_name(runs: Sequence[ReportedRun]) -> str:
    more = len(runs) - 1
    return runs[0].name + (f" and {counted(more, 'more seed')}" if more else "")


def _run_row(run: ReportedRun) -> tuple[str, ...]:
    files, score = run.files, run.score
    steps = files.by_step("step")
    seconds = number(steps[-1], "elapsed_s") if steps else None
    scored = [value for event in files.by_step("validation") if (value := number(event, "bpb")) is not None]
    interval = ""
    if score is not None and score.confidence.low_bpb is not None and score.confidence.high_bpb is not None:
        interval = f"{score.confidence.low_bpb:.4f} to {score.confidence.high_bpb:.4f}"
    return (
        run.name,
        "" if score is None else f"{score.bpb:.4f}",
        interval,
        f"{scored[-1]:.4f}" if scored else "",
        f"{steps[-1]['step']:,}" if steps else "0",
        "" if seconds is None else format_clock(seconds),
        "" if score is None else f"{score.total_bytes:,}",
        f"{files.environment.get('engine', 'unknown')}",
        run.state,
    )
