"""A table in a narrow terminal: every figure and name is there, whole, and no line is wider than the terminal."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from shared.cli.tables import fitting, make_table

# Two of them fit 40 columns; of longer ones Rich has to fold one.
NAMES = st.text("abcdefgh.", min_size=1, max_size=17)
FIGURES = st.integers(0, 10**9).map("{:,}".format)


def shown(table: Table, columns: int) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    for piece in fitting(table, console, console.options):
        console.print(piece)
    file = console.file
    assert isinstance(file, io.StringIO)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@settings(max_examples=40)
@given(st.data(), st.integers(40, 130), st.integers(0, 9), st.integers(1, 4))
def test_no_figure_and_no_name_is_cut(data: st.DataObject, columns: int, figures: int, rows: int) -> None:
    headings = [f"figure {index}" for index in range(figures)]
    table = make_table("title", ("name", "kind"), headings)
    told = []
    for _ in range(rows):
        row = [data.draw(NAMES), data.draw(NAMES), *(data.draw(FIGURES) for _ in headings)]
        told += row
        table.add_row(*row)
    lines = shown(table, columns)
    assert all(len(line) <= columns for line in lines)
    words = " ".join(lines).split()
    assert all(word in words for word in told)
    assert all(heading in "\n".join(lines) for heading in ("title", "name", "kind", *headings))


def test_pieces_begin_with_the_first_column_and_leave_out_empty_lines() -> None:
    table = make_table("", ("name", "split"), ("bytes",))
    table.add_column("source", overflow="fold")
    table.add_row("mine", "train", "1,234,567", "imported from a folder with a long name")
    table.add_row("", "heldout", "1,234", "")
    assert shown(table, 49) == [
        "",
        " name  split        bytes  source",
        " ───────────────────────────────────────────────",
        " mine  train    1,234,567  imported from a",
        "                           folder with a long",
        "                           name",
        "       heldout      1,234",
        "",
    ]
    narrow = shown(table, 42)
    assert narrow[1:5] == [
        " name  split        bytes",
        " ─────────────────────────",
        " mine  train    1,234,567",
        "       heldout      1,234",
    ]
    assert narrow[7:] == [
        " name  source",
        " ────────────────────────────────────────",
        " mine  imported from a folder with a",
        "       long name",
        "",
    ]


def test_a_wide_terminal_gets_the_table_itself() -> None:
    table = make_table("t", ("a",), ("b",))
    table.add_row("x", "1")
    console = Console(file=io.StringIO(), width=80)
    assert fitting(table, console, console.options) == [table]
