"""The size table on the console: shapes of a spec by how their matrices are stored, and what fits the budget."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from data.datasets import bind_tokenizer
from shared.artifact import code_bytes
from shared.artifact.sizes import SizedShape, fitting_parameters, size_table, storage_plans
from shared.cli.command import CommandResult, say
from shared.cli.scoring import make_table
from shared.spec import Spec


def show_sizes(out: Console, spec: Spec, engine: str | None) -> CommandResult:
    """Print the table; status 1 if the spec as it is does not fit."""
    spec = bind_tokenizer(spec)
    code, limit = code_bytes(engine, spec), spec.budget.total_bytes
    rows = size_table(spec)
    names = [plan.name for plan in storage_plans()]
    title = f"{spec.name}: artifact + {code:,} bytes of code in MB, of {limit / 1e6:g} allowed; over it in brackets"
    table = make_table(title, ("layers x width",), ("parameters", *names))
    for row in rows:
        table.add_row(row.shape, f"{row.parameters:,}", *(_cell(row, name, code, limit) for name in names))
    fitting = {name: fitting_parameters(rows, name, limit - code) for name in names}
    table.add_row("parameters that fit", "", *(f"{count / 1e6:.1f} M" for count in fitting.values()), style="bold")
    out.print(table)
    say(out, "int8 to int4: matrices by row_max, the rest as given. step: all by uniform, in deviations, codec range")
    given = next(row for row in rows if row.shape.endswith("as given")).artifact_bytes["as given"] + code
    document = {
        "limit_bytes": limit,
        "code_bytes": code,
        "fits": given <= limit,
        "fitting_parameters": fitting,
        "shapes": [
            {"shape": row.shape, "parameters": row.parameters, "artifact_bytes": row.artifact_bytes} for row in rows
        ],
    }
    return CommandResult(document, 0 if given <= limit else 1)


def _cell(row: SizedShape, name: str, code: int, limit: int) -> Text:
    total = row.artifact_bytes[name] + code
    return Text(f"{total / 1e6:.2f}", "green") if total <= limit else Text(f"({total / 1e6:.2f})", "red")
