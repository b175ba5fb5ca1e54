"""The size table on the console: shapes of a spec by how their matrices are stored, and what fits the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from data.datasets import bind_tokenizer
from shared.artifact import code_bytes
from shared.artifact.sizes import SizedShape, fitting_parameters, size_table, storage_plans
from shared.cli.command import CommandResult
from shared.cli.scoring import default_engine, say_prose
from shared.cli.tables import make_table
from shared.spec import Spec


@dataclass(frozen=True)
class Sizes:
    """The table of a spec that knows its tokenizer; `code` and `limit` are bytes."""

    spec: Spec
    rows: tuple[SizedShape, ...]
    code: int
    limit: int

    @property
    def fits(self) -> bool:
        """Whether the spec as it is does."""
        given = next(row for row in self.rows if row.shape.endswith("as given"))
        return given.artifact_bytes["as given"] + self.code <= self.limit

    @property
    def fitting(self) -> dict[str, int]:
        """About how many parameters fit, by how they are stored; none where the code alone is over the limit."""
        room = max(0, self.limit - self.code)
        return {plan.name: fitting_parameters(self.rows, plan.name, room) for plan in storage_plans()}

    def to_document(self) -> dict[str, Any]:
        """The table as JSON."""
        return {
            "limit_bytes": self.limit,
            "code_bytes": self.code,
            "fits": self.fits,
            "fitting_parameters": self.fitting,
            "shapes": [
                {"shape": row.shape, "parameters": row.parameters, "artifact_bytes": row.artifact_bytes}
                for row in self.rows
            ],
        }


def sizes_of(spec: Spec, engine: str | None) -> Sizes:
    """The table of a spec, with the code of an engine."""
    return Sizes(spec, size_table(spec), code_bytes(engine, spec), spec.budget.total_bytes)


def print_sizes(out: Console, sizes: Sizes) -> None:
    """A line for each shape, and what fits."""
    allowed = f"{sizes.limit / 1e6:g} allowed; over it in brackets"
    title = f"{sizes.spec.name}: artifact + {sizes.code:,} bytes of code in MB, of {allowed}"
    fitting = sizes.fitting
    table = make_table(title, ("layers x width",), ("parameters", *fitting))
    for row in sizes.rows:
        cells = (_cell(row.artifact_bytes[name] + sizes.code, sizes.limit) for name in fitting)
        table.add_row(row.shape, f"{row.parameters:,}", *cells)
    table.add_row("parameters that fit", "", *(f"{count / 1e6:.1f} M" for count in fitting.values()), style="bold")
    out.print(table)
    say_prose(
        out, "int8 to int4: matrices by row_max, the rest as given. step: all by uniform, in deviations, codec range"
    )


def show_sizes(out: Console, spec: Spec, engine: str | None) -> CommandResult:
    """Print the table; status 1 if the spec as it is does not fit."""
    sizes = sizes_of(bind_tokenizer(spec), engine or default_engine())
    print_sizes(out, sizes)
    return CommandResult(sizes.to_document(), 0 if sizes.fits else 1)


def _cell(total: int, limit: int) -> Text:
    return Text(f"{total / 1e6:.2f}", "green") if total <= limit else Text(f"({total / 1e6:.2f})", "red")
