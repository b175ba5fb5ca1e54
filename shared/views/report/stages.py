"""The time section of a report: how long each stage took, so that nobody pays for minutes unseen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shared.runs.finished_run import FinishedRun, number
from shared.runs.metrics import Record
from shared.views.report.markup import Child, Element, section, table
from shared.views.units import in_time


def stage_seconds(records: Iterable[Record]) -> dict[str, float]:
    """Seconds of every stage, summed over the starts of a run, in the order in which they first began."""
    total: dict[str, float] = {}
    for record in records:
        seconds = record.get("seconds")
        if record.get("event") == "stages" and isinstance(seconds, dict):
            for stage in seconds:
                total[stage] = total.get(stage, 0.0) + (number(seconds, stage) or 0.0)
    return total


def stages_text(seconds: Mapping[str, float]) -> str:
    """`training 105.1 s, scoring 12.0 s`: what took longest first, without what took no time worth a word."""
    shown = sorted(((stage, value) for stage, value in seconds.items() if value >= 0.05), key=lambda item: -item[1])
    return ", ".join(f"{stage} {in_seconds(value)}" for stage, value in shown)


def in_seconds(seconds: float) -> str:
    """Tenths of a second below a minute, longer times as everywhere."""
    return f"{seconds:.1f} s" if seconds < 60.0 else in_time(seconds)


def time_section(run: FinishedRun) -> Element | None:
    """The section; None for a run that did not note its stages."""
    seconds = stage_seconds(run.records)
    total = sum(seconds.values())
    if not total:
        return None
    rows: list[tuple[Child, ...]] = [
        (stage, in_seconds(value), f"{value / total:.1%}") for stage, value in seconds.items()
    ]
    rows.append(("all", in_seconds(total), "100.0%"))
    return section("Time", table(("stage", "time", "share"), rows, numeric=(1, 2)))
