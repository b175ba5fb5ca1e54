"""The parity report for people: what was run, one table, and what failed."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.parity.result import EXACT, ParityReport, ParityRow

# Narrower terminals get the table without units and positions.
WIDE_COLUMNS = 120


def print_report(console: Console, report: ParityReport) -> None:
    """The header, the table, the failed rows and the verdict."""
    reduced = "reduced: " + ", ".join(report.reductions) if report.reductions else "nothing reduced"
    console.print(f"parity of {report.name}: full width and depth; {reduced}")
    if len(report.implementations) == 2:
        only = report.implementations[1]
        console.print(f"only one engine is installed here: {only} is compared with the NumPy oracle alone")
    console.print(report_table(report, wide=console.width >= WIDE_COLUMNS))
    failed = [row for row in report.rows if not row.passed]
    for row in failed:
        console.print(f"FAIL {row.check}, {row.pair}: {row.worst}", style="red")
    verdict = f"{len(failed)} of {len(report.rows)} rows failed" if failed else f"all {len(report.rows)} rows agree"
    console.print(f"{verdict}, {report.elapsed_s:.0f} s", style="bold red" if failed else "bold green")


def report_table(report: ParityReport, *, wide: bool) -> Table:
    """Check, pair, measured, tolerance, verdict; with `wide` also the unit and the worst parameter or position."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("check", no_wrap=True)
    table.add_column("pair", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("tolerance", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    if wide:
        table.add_column("unit", no_wrap=True)
        table.add_column("worst", overflow="fold")
    previous = ""
    for row in report.rows:
        verdict = Text("ok", "green") if row.passed else Text("FAIL", "bold red")
        check = row.check if row.check != previous else ""
        table.add_row(check, row.pair, *_numbers(row), verdict, *((row.unit, row.worst) if wide else ()))
        previous = row.check
    return table


def _numbers(row: ParityRow) -> tuple[str, str]:
    if row.tolerance == EXACT:
        return (f"{row.measured:g}", "0")
    return (f"{row.measured:.1e}", f"{row.tolerance:.0e}")
