"""A comparison for people: a table on the console, and the same as markdown for records/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from shared.scoring.statistics import Interval
from shared.study.comparison import ComparedGroup, Comparison, notes
from shared.study.groups import TRAIN_TEXT_KEY, differences

STYLES = {"better": "green", "worse": "red", "does not count": "red", "baseline": "bold"}
# The columns of `headings` in the order of a console, which shows in several tables what it has no room for.
ORDER = (0, 1, 2, 3, 4, 5, 9, 6, 7, 8)
# Spec fields that many groups differ in are listed this far, then counted.
MOST_FIELDS = 12


def print_comparison(out: Console, comparison: Comparison) -> None:
    """The table, what the specs differ in, and the notes."""
    names, lines = headings(comparison), [cells(row) for row in comparison.rows]
    styles = [STYLES.get(row.verdict, "") for row in comparison.rows]
    title = "bits per byte, lower is better"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ORDER:
        side: Literal["left", "right"] = "right" if column else "left"
        table.add_column(names[column], overflow="fold", no_wrap=column > 0, justify=side)
    for row, style in zip(lines, styles, strict=True):
        table.add_row(*(row[column] for column in ORDER), style=style)
    out.print(table)
    for line in facts(comparison):
        out.print(line, soft_wrap=not out.is_terminal)
    for problem in comparison.problems:
        out.print(f"bytetwin: {problem}", style="red", soft_wrap=True)


def markdown(comparison: Comparison, title: str, command: str, halving: Sequence[str] = ()) -> str:
    """A page for records/: the table, each run, what was compared how, what halving stopped, and the command that makes
    it again."""
    lines = [f"# {title}", "", "Bits per byte, lower is better.", ""]
    lines += _markdown_table(headings(comparison), [cells(row) for row in comparison.rows])
    lines += ["", "## Runs", "", *_markdown_table(*_run_cells(comparison))]
    found = [*facts(comparison), *comparison.problems]
    lines += ["", "## What was compared", "", *(f"- {fact}" for fact in found)]
    if halving:
        lines += ["", "## Halving", "", *(f"- {line}" for line in halving)]
    lines += ["", "## Make it again", "", f"    {command}", ""]
    return "\n".join(lines)


def difference_lines(comparison: Comparison) -> list[str]:
    """One line for each field that the specs differ in, values in the order of the rows. Training texts have a note."""
    found = differences([row.group for row in comparison.rows])
    found.pop(TRAIN_TEXT_KEY, None)
    lines = [f"{key}: {', '.join(_value(value) for value in values)}" for key, values in found.items()]
    more = len(lines) - MOST_FIELDS
    return lines if more <= 0 else [*lines[:MOST_FIELDS], f"and {more} more fields, see --json"]


def protocol_line(comparison: Comparison) -> str:
    """One line: the text that was scored, and how."""
    score = comparison.rows[0].group.runs[0].score
    return (
        f"scored: {score.bytes:,} bytes of {score.dataset.name} (text sha256 {score.dataset.text_sha256[:16]}), "
        f"{score.weights} weights, {score.windows_text}"
    )


def facts(comparison: Comparison) -> list[str]:
    """The lines below the table. Whether the baseline is beaten as a record must be is said of each group with enough
    seeds; that others have too few is a note."""
    asked = [row.significance for row in comparison.rows]
    answers = [found.text for found in asked if found is not None and found.answer != "too few seeds"]
    return [*difference_lines(comparison), protocol_line(comparison), *answers, *notes(comparison)]


def headings(comparison: Comparison) -> list[str]:
    """The names of the columns of `cells`."""
    level = f"{comparison.level:.0%}"
    test = "p (better)" if comparison.margin_bpb == 0 else f"p (better by {comparison.margin_bpb:.4f})"
    return [
        "what",
        "mean",
        "sd",
        "n",
        "difference",
        f"{level} over seeds",
        f"{level} over documents",
        test,
        "steps/s",
        "verdict",
    ]


def cells(row: ComparedGroup) -> list[str]:
    """What a table says of a group; the first column names it, the last is the verdict."""
    found, documents = row.difference, row.over_documents
    slow, fast = row.steps_per_s
    within = None
    if documents is not None and documents.low_bpb is not None and documents.high_bpb is not None:
        within = Interval(documents.low_bpb, documents.high_bpb)
    return [
        row.group.label,
        f"{row.summary.mean:.4f}",
        "" if row.summary.std is None else f"{row.summary.std:.4f}",
        str(row.summary.n) if row.summary.n == len(row.group.runs) else f"{row.summary.n} of {len(row.group.runs)}",
        "" if found is None else f"{found.mean:+.4f}",
        "" if found is None else _interval(found.interval),
        _interval(within),
        "" if found is None or found.probability is None else f"{found.probability:.3g}",
        f"{slow:.3g}" if f"{slow:.3g}" == f"{fast:.3g}" else f"{slow:.3g} to {fast:.3g}",
        row.verdict,
    ]


def _run_cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    names = ["what", "seed", "bits per byte", "steps", "training s", "symbols read", "parameters", "bytes", "engine"]
    rows = []
    for row in comparison.rows:
        for run in row.group.runs:
            score, symbols = run.score, run.steps * run.spec.training.batch_symbols
            figures = [run.seed, f"{score.bpb:.4f}", f"{run.steps:,}", f"{run.train_s:.1f}", f"{symbols:,}"]
            sizes = [f"{score.parameters:,}", f"{score.total_bytes:,}", f"{score.engine} on {run.device}"]
            rows.append([row.group.label, *map(str, figures), *sizes])
    return names, rows


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:+.4f} to {interval.high:+.4f}"


def _markdown_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [names, ["---"] * len(names), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
