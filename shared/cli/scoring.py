"""Shared by commands that score or take long: arguments, the default engine, progress, tables, lines for checks."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from shared.artifact import ArtifactInfo
from shared.artifact.calibration import Calibration
from shared.cli.command import console, positive, say
from shared.engine.package import create_scorer
from shared.engine.package import default_engine as default_engine
from shared.engine.protocol import Weights
from shared.errors import UserError
from shared.runs.target import Target
from shared.scoring.checks import Check
from shared.scoring.document import CheckPart
from shared.spec import Spec, with_overrides
from shared.spec.base import shown
from shared.training.calibration import calibrate_weights, is_calibrated
from shared.training.packing import LogitFit, pack_weights


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """--data and --max-symbols."""
    parser.add_argument("--data", metavar="NAME", help="dataset whose held-out text is scored; default: the spec's")
    parser.add_argument(
        "--max-symbols", type=positive, metavar="N", help="score a fixed sample of documents of at most N symbols"
    )


def add_step_argument(parser: argparse.ArgumentParser) -> None:
    """--step."""
    parser.add_argument(
        "--step", type=positive, metavar="N", help="weights of the checkpoint of step N; default: the last whole one"
    )


def with_section(spec: Spec, overrides: Sequence[str], prefix: str, use: str) -> Spec:
    """The spec with `--set` of keys that begin with a prefix, a section. Raises UserError for any other, because the
    weights are of the rest."""
    other = next((each for each in overrides if not each.strip().startswith(prefix)), None)
    if other is not None:
        raise UserError(f"--set {shown(other)}: only the section {prefix.rstrip('.')} can be changed for {use}")
    return with_overrides(spec, overrides)


def say_warnings(out: Console, target: Target) -> None:
    """Print which damaged checkpoints of a run were passed over."""
    for warning in target.warnings:
        say(out, f"warning: {warning}; --step N chooses", "yellow")


def calibrated(engine: str, spec: Spec, weights: Weights) -> Calibration | None:
    """The calibration that packing these weights needs, made on the named engine under a bar; None if it needs none."""
    if not is_calibrated(spec):
        return None
    with progress_bar(console(), f"calibrating on {engine}", "symbols") as progress:
        return calibrate_weights(engine, spec, weights, progress)


def packed(
    engine: str, path: Path, spec: Spec, weights: Weights, calibration: Calibration | None, extra: Mapping[str, Any]
) -> tuple[ArtifactInfo, LogitFit | None]:
    """Write the artifact of weights; the fit of its logits, if the spec has one, under a bar on the named engine."""
    with progress_bar(console(), f"fitting logits on {engine}", "symbols") as progress:
        scorer_of = partial(create_scorer, engine, spec)
        return pack_weights(path, spec, weights, calibration, scorer_of, extra=extra, progress=progress)


@contextlib.contextmanager
def progress_bar(out: Console, title: str, unit: str) -> Iterator[Callable[..., None]]:
    """A bar that disappears when done, and nothing where `out` is not a terminal.

    Yields the function to call with (done, total) in `unit`, and with another title if it changes. A total of None
    begins something of unknown length.
    """
    counts = DownloadColumn() if unit == "bytes" else _Counts(unit)
    what = TextColumn("{task.description}", markup=False)
    columns = (what, BarColumn(), counts, TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        task = bars.add_task(title, total=None)

        def update(done: int, total: int | None, title: str = title) -> None:
            if total is None:
                bars.reset(task, description=title)
            bars.update(task, description=title, completed=done, total=total)

        yield update


class _Counts(ProgressColumn):
    """`7,168/20,000 symbols`, or nothing where the total is unknown."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f} {self.unit}")


def say_prose(out: Console, line: str | Text, style: str = "", *, indent: int = 2) -> None:
    """Print a line that a terminal shows with whole words, indented from the second line on."""
    text = Text(line, style) if isinstance(line, str) else line
    first, *others = text.wrap(out, out.width - indent) if out.is_terminal else [text]
    out.print(first, soft_wrap=True)
    for other in others:
        out.print(Text(indent * " ") + other, soft_wrap=True)


def print_checks(out: Console, checks: Iterable[Check | CheckPart]) -> None:
    """One line per check: verdict, name, what was measured."""
    for check in checks:
        say_prose(out, Text.assemble(verdict(check), f" {check.name}: {check.detail}"), indent=8)


def verdict(check: Check | CheckPart) -> Text:
    """`passed`, `warning` or `FAILED`, coloured."""
    if not check.passed:
        return Text("FAILED ", "red")
    return Text("warning", "yellow") if check.warning else Text("passed ", "green")
