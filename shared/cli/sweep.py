"""`bytetwin sweep`: specs x varied fields x seeds, trained one after the other or several at once, and compared."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
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
    positive,
    runs_dir_words,
    say,
    say_error,
    write_document,
)
from shared.cli.compare import add_comparison_arguments, compare_runs, comparison_words
from shared.engine.package import default_training_engine, engine_package
from shared.engine.ranks import is_launched
from shared.errors import UserError
from shared.runs.finished_run import read_finished
from shared.runs.observer import Observer
from shared.runs.run_directory import NAME_PATTERN
from shared.study.comparison import Comparison
from shared.study.places import ALL_GPUS, places
from shared.study.plan import PlannedRun, parse_seeds, plan_runs
from shared.study.sweep import Swept, sweep
from shared.views.console import make_observer

DOCUMENT_FILE = "sweep.json"
# Runs of a plan that an error names.
MOST_LISTED = 12


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
    parser.add_argument(
        "--jobs",
        default="1",
        metavar="N",
        help="runs that are trained at the same time; `gpus`: one on each GPU; default %(default)s",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads of each run; default: all, whatever --jobs is"
    )
    parser.add_argument(
        "--only",
        type=positive,
        action="append",
        default=[],
        metavar="N",
        help="train this run of the plan, counted from 1, and compare nothing: for one run on each of several machines",
    )
    parser.add_argument("--name", metavar="NAME", help="folder of the sweep in the runs folder; default: SPEC-sweep")
    add_runs_dir_argument(parser)
    add_comparison_arguments(parser)


def run(args: argparse.Namespace) -> CommandResult:
    """Train what is not done, compare what is; status 1 if a run failed or a score does not count, 128 + signal
    number if it was stopped."""
    if is_launched():
        raise UserError("sweep starts its own processes: start it without torchrun or mlx.launch")
    plan = plan_runs(args.specs, args.overrides, args.vary, parse_seeds(args.seeds), args.tried)
    if args.name is not None and not NAME_PATTERN.fullmatch(args.name):
        raise UserError(f"--name {args.name!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")
    labels = list(dict.fromkeys(planned.label for planned in plan))
    if args.baseline is not None and args.baseline not in labels:
        raise UserError(f"--baseline {args.baseline!r}: no such group; groups: {', '.join(labels)}")
    folder = args.runs_dir / (args.name or f"{plan[0].spec.name}-sweep")
    out = console()
    numbers = {planned.name: number for number, planned in enumerate(plan, start=1)}
    chosen = [plan[number - 1] for number in _only(args, plan)]
    engine_name = args.engine or default_training_engine()
    gpus = _gpus(engine_name, args.jobs) if args.jobs != "1" else ()
    where = places(args.jobs, args.threads, gpus)
    if len(where) > 1 and not gpus and any(planned.spec.schedule.driver == "time" for planned in chosen):
        say(out, "runs at the same time share this machine's cores: each takes fewer steps in its time", "yellow")

    def announce(number: int, planned: PlannedRun, before: bool) -> None:
        what = "finished before" if before else "training"
        say(out, f"run {numbers[planned.name]} of {len(plan)}: {planned.name}: {what}", "bold")

    view = _own_screen if len(where) == 1 else _shared_screen
    return _end(args, folder, sweep(chosen, engine_name, folder, view, announce, where), out)


def _only(args: argparse.Namespace, plan: Sequence[PlannedRun]) -> list[int]:
    """The numbers of the runs that --only names, all without it."""
    for number in args.only:
        if number > len(plan):
            listed = ", ".join(f"{index} {planned.name}" for index, planned in enumerate(plan[:MOST_LISTED], start=1))
            more = f" and {len(plan) - MOST_LISTED} more" if len(plan) > MOST_LISTED else ""
            raise UserError(f"--only {number}: this sweep has {len(plan)} runs: {listed}{more}")
    return sorted(set(args.only)) or list(range(1, len(plan) + 1))


def _gpus(engine_name: str, jobs: str) -> Sequence[Mapping[str, str]]:
    """The environments of single GPUs for an engine, none where all of its processes use the same device."""
    environments = engine_package(engine_name).gpu_environments
    if environments is not None:
        return environments()
    if jobs == ALL_GPUS:
        raise UserError(
            f"--jobs {jobs}: all processes of engine {engine_name} use the same device; choose --engine torch"
        )
    return ()


def _own_screen(name: str) -> Observer:
    """Make the view of a run that is alone. Called in the run's process."""
    return make_observer(console())


def _shared_screen(name: str) -> Observer:
    """Make the view of one run of several. Called in the run's process."""
    return make_observer(console(), name)


def _end(args: argparse.Namespace, folder: Path, swept: Swept, out: Console) -> CommandResult:
    """Compare the finished runs, print why the others are not, and store the document."""
    words = _words(args)
    comparison = None if args.only else _compare(args, folder, swept, out, words)
    for ended in swept.runs:
        if ended.message:
            say_error(out, f"{ended.run.path}: {ended.message}")
    if swept.exit_status > 1:
        say(out, f"resume with: {shlex.join(['bytetwin', *words])}")
    document = _document(folder, swept, comparison)
    # Of a part of the plan the document would hide what other machines have done of it.
    if folder.is_dir() and not args.only:
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
        "--jobs": None if args.jobs == "1" else args.jobs,
        "--threads": args.threads,
        "--only": args.only,
        "--name": args.name,
    }
    return ["sweep", *args.specs, *option_words(options), *runs_dir_words(args), *comparison_words(args)]
