"""The time section of a report: how long each phase took, so that nobody pays for minutes unseen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shared.runs.metrics import Event, number
from shared.runs.run_files import RunFiles
from shared.units import format_duration
from shared.views.report.markup import Child, Element, section, table


def phase_seconds(events: Iterable[Event]) -> dict[str, float]:
    """Seconds of every phase, summed over the starts of a run, in the order in which they first began."""
    total: dict[str, float] = {}
    for event in events:
        seconds = event.get("seconds")
        if event.get("event") == "phases" and isinstance(seconds, dict):
            for phase in seconds:
                total[phase] = total.get(phase, 0.0) + (number(seconds, phase) or 0.0)
    return total


def phases_text(seconds: Mapping[str, float]) -> str:
    """`training 1:45, scoring 12.0 s`: what took longest first, without what took no time worth a word."""
    shown = sorted(((phase, value) for phase, value in seconds.items() if value >= 0.05), key=lambda item: -item[1])
    return ", ".join(f"{phase} {format_duration(value)}" for phase, value in shown)


def time_section(run: RunFiles) -> Element | None:
    """The section; None for a run that did not note its phases."""
    seconds = phase_seconds(run.metrics)
    total = sum(seconds.values())
    if not total:
        return None
    rows: list[tuple[Child, ...]] = [
        (phase, format_duration(value), f"{value / total:.1%}") for phase, value in seconds.items()
    ]
    rows.append(("all", format_duration(total), "100.0%"))
    return section("Time", table(("phase", "time", "share"), rows, numeric=(1, 2)))
