"""The preflight table for people."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.preflight.row import Row
from shared.preflight.run import PreflightReport

# A file or pipe gets this width.
WIDE_COLUMNS = 140
STYLES = {"go": "green", "no-go": "bold red", "unknown": "yellow", "forced": "bold magenta"}


def print_report(console: Console, report: PreflightReport) -> None:
    """Header, table and verdict."""
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDE_COLUMNS, highlight=False)
    question, facts = report.bench.question, report.bench.facts
    ranks = "1 rank" if question.ranks == 1 else f"{question.ranks} ranks"
    header = f"preflight of {question.spec.name} on {question.engine}, {ranks}: {facts.names[0]}, {facts.framework}"
    console.print(header, markup=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("row", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("figure", overflow="fold", ratio=2)
    table.add_column("how it was obtained", overflow="fold", ratio=3)
    for row in report.rows:
        table.add_row(row.name, verdict(row), escape(row.figure), escape(row.how))
    console.print(table)
    blocking = [row.name for row in report.rows if row.blocks]
    unknowns = sum(row.verdict == "unknown" for row in report.rows)
    rest = f"; {unknowns} of {len(report.rows)} rows unknown here" if unknowns else ""
    rest += f"; forced: {', '.join(report.forced)}" if report.forced else ""
    conclusion = f"NO-GO: {', '.join(blocking)}" if blocking else "GO"
    style = "bold red" if blocking else "bold green"
    console.print(f"{conclusion}{rest}; {report.elapsed_s:.0f} s", style=style, markup=False)


def verdict(row: Row) -> str:
    """The coloured verdict of a row."""
    word = "forced" if row.forced else row.verdict
    return f"[{STYLES[word]}]{word}[/]"
