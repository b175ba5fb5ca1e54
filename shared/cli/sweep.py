"""`bytetwin sweep`: specs x varied fields x seeds, trained one after the other and compared."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from shared.cli.command import (
    CommandResult,
    add_engine_argument,
    add_runs_dir_argument,
    add_set_argument,
    console,
    option_words,
    runs_dir_words,
    say,
    say_error,
    write_document,
)
from shared.cli.compare import add_comparison_arguments, compare_runs, comparison_words
from shared.cli.train import default_training_engine
from shared.engine.ranks import is_launched
from shared.errors import UserError
from shared.runs.finished_run import read_finished
from shared.runs.observer import Observer
from shared.runs.run_directory import NAME_PATTERN
from shared.study.comparison import Comparison
from shared.study.plan import PlannedRun, parse_seeds, plan_runs
from shared.study.sweep import Swept, sweep
from shared.views.console import make_observer

DOCUMENT_FILE = "sweep.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("specs", metavar="SPEC", nargs="+", help="preset name or .toml file; the first is the baseline")
    parser.add_argument(
        "--seeds",
        default="3",
        metavar="N|A,B,...",
        help="a number of seeds (3: 0, 1, 2) or a list; default %(default)s",
    )
    add_set_argument(parser)
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="section.key=A,B,...",
        help="every spec with each of these values; with several --vary every combination",
    )
    parser.add_argument(
        "--try",
        dest="tried",
        action="append",
        default=[],
        metavar="section.key=VALUE",
        help="every spec also with this change alone; several changes in one are separated by spaces and "
        "may begin with a name: 'wide: model.model_dim=256 model.num_heads=8'",
    )
    add_engine_argument(parser)
    parser.add_argument("--name", metavar="NAME", help="folder of the sweep in the runs folder; default: SPEC-sweep")
    add_runs_dir_argument(parser)
    add_comparison_arguments(parser)


def run(args: argparse.Namespace) -> CommandResult:
    """Train what is not done, compare what is; status 1 if a run failed or a score does not count, 128 + signal
    number if it was stopped."""
    if is_launched():
        raise UserError("sweep starts its own processes, one run at a time: start it without torchrun or mlx.launch")
    plan = plan_runs(args.specs, args.overrides, args.vary, parse_seeds(args.seeds), args.tried)
    if args.name is not None and not NAME_PATTERN.fullmatch(args.name):
        raise UserError(f"--name {args.name!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")
    labels = list(dict.fromkeys(planned.label for planned in plan))
    if args.baseline is not None and args.baseline not in labels:
        raise UserError(f"--baseline {args.baseline!r}: no such group; groups: {', '.join(labels)}")
    folder = args.runs_dir / (args.name or f"{plan[0].spec.name}-sweep")
    out = console()

    def announce(number: int, planned: PlannedRun, before: bool) -> None:
        what = "finished before" if before else "training"
        say(out, f"run {number} of {len(plan)}: {planned.name}: {what}", "bold")

    swept = sweep(plan, args.engine or default_training_engine(), folder, _observer, announce)
    return _end(args, folder, swept, out)


def _observer() -> Observer:
    """Make the view of a run. Called in the run's process."""
    return make_observer(console())


def _end(args: argparse.Namespace, folder: Path, swept: Swept, out: Console) -> CommandResult:
    """Compare the finished runs, print why the others are not, and store the document."""
    words = _words(args)
    comparison = _compare(args, folder, swept, out, words)
    for ended in swept.runs:
        if ended.message:
            say_error(out, f"{ended.run.path}: {ended.message}")
    if swept.exit_status > 1:
        say(out, f"resume with: {shlex.join(['bytetwin', *words])}")
    document = _document(folder, swept, comparison)
    if folder.is_dir():
        write_document(folder / DOCUMENT_FILE, document)
    refused = comparison is not None and bool(comparison.problems)
    return CommandResult(document, swept.exit_status or int(refused))


def _compare(args: argparse.Namespace, folder: Path, swept: Swept, out: Console, words: list[str]) -> Comparison | None:
    """Compare the finished runs; None as long as no run of the baseline is among them."""
    done = [ended for ended in swept.runs if ended.done]
    baseline = args.baseline or swept.runs[0].planned.label
    if not any(ended.planned.label == baseline for ended in done):
        say(out, f"no run of the baseline {baseline} is finished: nothing to compare", "yellow")
        return None
    order = {ended.planned.label: position for position, ended in enumerate(swept.runs)}
    runs = [read_finished(ended.run) for ended in sorted(done, key=lambda ended: order[ended.planned.label])]
    return compare_runs(args, runs, out, title=f"Sweep {folder.name}", words=words)


def _document(folder: Path, swept: Swept, comparison: Comparison | None) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "runs": [
            {
                "run": str(ended.run.path),
                "label": ended.planned.label,
                "seed": ended.planned.seed,
                "status": ended.status,
                "message": ended.message,
            }
            for ended in swept.runs
        ],
        "comparison": comparison.to_document() if comparison is not None else None,
    }


def _words(args: argparse.Namespace) -> list[str]:
    """The command line that does the same again, which continues a sweep."""
    options = {
        "--seeds": args.seeds,
        "--set": args.overrides,
        "--vary": args.vary,
        "--try": args.tried,
        "--engine": args.engine,
        "--name": args.name,
    }
    return ["sweep", *args.specs, *option_words(options), *runs_dir_words(args), *comparison_words(args)]
