"""The preflight table for people."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.preflight.ask_rows import PreflightReport
from shared.preflight.row import Row

STYLES = {"go": "green", "risk": "bold yellow", "no-go": "bold red", "unknown": "yellow", "forced": "bold magenta"}


def print_rows(console: Console, report: PreflightReport) -> None:
    """Header and table."""
    question, facts = report.context.question, report.context.facts
    where = f"{question.engine}, {question.trainers}: {facts.names[0]}, {facts.framework}"
    console.print(f"preflight of {question.spec.name} on {where}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("row", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("figure", overflow="fold", ratio=2)
    table.add_column("how it was obtained", overflow="fold", ratio=3)
    for row in report.rows:
        table.add_row(row.name, verdict(row), row.figure, row.how)
    console.print(table)


def print_verdict(console: Console, report: PreflightReport) -> None:
    """The line that says go or no-go."""
    conclusion, style = _conclusion(report)
    console.print(conclusion, style=style)


def _conclusion(report: PreflightReport) -> tuple[str, str]:
    """(one line: go or no-go because of which rows, the rows at risk, what is unknown or forced; its style)."""
    parts = [f"NO-GO: {', '.join(report.blocking)}" if report.blocking else "GO"]
    if report.risks:
        parts.append(f"risk: {', '.join(report.risks)}{' (refused by --strict)' if report.strict else ''}")
    if unknowns := report.counts["unknown"]:
        parts.append(f"{unknowns} of {len(report.rows)} rows unknown here")
    if report.forced:
        parts.append(f"forced: {', '.join(report.forced)}")
    style = "bold red" if report.blocking else "bold yellow" if report.risks else "bold green"
    return f"{'; '.join(parts)}; {report.elapsed_s:.0f} s", style


def verdict(row: Row) -> Text:
    """The coloured verdict of a row."""
    word = "forced" if row.forced else row.verdict
    return Text(word, STYLES[word])
