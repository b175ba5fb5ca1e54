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
    number_type,
    option_words,
    positive,
    runs_dir_words,
    say,
    say_error,
    write_document,
)
from shared.cli.compare import add_comparison_arguments, compare_runs, comparison_words
from shared.cli.scoring import say_prose
from shared.engine.package import default_training_engine, engine_package
from shared.engine.ranks import is_launched
from shared.errors import UserError
from shared.runs.finished_run import read_finished
from shared.runs.observer import Observer
from shared.runs.run_directory import NAME_PATTERN
from shared.sinks.kinds import KINDS
from shared.study.comparison import Comparison
from shared.study.groups import SWEEP_FILE
from shared.study.halving import ETA, LEVEL, Halving
from shared.study.places import ALL_GPUS, places
from shared.study.plan import PlannedRun, parse_seeds, plan_runs
from shared.study.sweep import Swept, sweep
from shared.views.console import make_observer

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
    parser.add_argument(
        "--halving",
        action="store_true",
        help="successive halving: at a few fractions of the budget the worse half of the experiments is stopped, "
        "except the baseline and those that could still win",
    )
    parser.add_argument(
        "--eta",
        type=number_type(int, lambda value: value >= 2, "an integer of at least 2"),
        metavar="N",
        help=f"with --halving: 1/N of the experiments stay at each fraction; default {ETA}",
    )
    parser.add_argument(
        "--stop-confidence",
        type=number_type(float, lambda value: 0.0 <= value < 1.0, "a number of at least 0 and below 1"),
        metavar="LEVEL",
        help="with --halving: of the paired interval whose reaching zero keeps an experiment; 0: by rank alone; "
        f"default {LEVEL:g}",
    )
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        choices=list(KINDS),
        help="also send the numbers of every run there, as `train --log` does, in a group named after the sweep",
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
        say_prose(out, "runs at the same time share this machine's cores: each takes fewer steps in its time", "yellow")

    def announce(number: int, planned: PlannedRun, what: str) -> None:
        say(out, f"run {numbers[planned.name]} of {len(plan)}: {planned.name}: {what}", "bold")

    view = _own_screen if len(where) == 1 else _shared_screen
    swept = sweep(
        chosen,
        engine_name,
        folder,
        view,
        announce,
        where,
        log=args.log,
        halving=_halving(args, labels),
        baseline=args.baseline,
    )
    return _end(args, folder, swept, out)


def _halving(args: argparse.Namespace, labels: Sequence[str]) -> Halving | None:
    """What --halving and its options ask for."""
    if not args.halving:
        for option, value in (("--eta", args.eta), ("--stop-confidence", args.stop_confidence)):
            if value is not None:
                raise UserError(f"{option} says how --halving stops runs: give both")
        return None
    if args.only:
        raise UserError("--halving compares all runs of the plan, --only trains some of them: give one of the two")
    if len(labels) < 2:
        raise UserError("--halving stops the worse of several experiments: give --vary, --try or another SPEC")
    return Halving(
        ETA if args.eta is None else args.eta, LEVEL if args.stop_confidence is None else args.stop_confidence
    )


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
        if ended.message and ended.status not in ("paused", "stopped"):
            say_error(out, f"{ended.run.path}: {ended.message}")
    if swept.exit_status > 1:
        say(out, f"resume with: {shlex.join(['bytetwin', *words])}")
    document = _document(folder, swept, comparison)
    # Of a part of the plan the document would hide what other machines have done of it.
    if folder.is_dir() and not args.only:
        write_document(folder / SWEEP_FILE, document)
    refused = comparison is not None and bool(comparison.problems)
    return CommandResult(document, swept.exit_status or int(refused))


def _compare(args: argparse.Namespace, folder: Path, swept: Swept, out: Console, words: list[str]) -> Comparison | None:
    """Compare the finished runs; None as long as no run of the baseline is among them."""
    done = [ended for ended in swept.runs if ended.done]
    baseline = args.baseline or swept.runs[0].planned.label
    if not any(ended.planned.label == baseline for ended in done):
        say(out, f"no run of the baseline {baseline} is finished: nothing to compare", "yellow")
        for line in _halving_lines(swept):
            say_prose(out, line)
        return None
    order = {ended.planned.label: position for position, ended in enumerate(swept.runs)}
    runs = [read_finished(ended.run) for ended in sorted(done, key=lambda ended: order[ended.planned.label])]
    return compare_runs(args, runs, out, title=f"Sweep {folder.name}", words=words, halving=_halving_lines(swept))


def _halving_lines(swept: Swept) -> list[str]:
    return swept.halved.lines() if swept.halved is not None else []


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
        **({"halving": swept.halved.to_document()} if swept.halved is not None else {}),
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
        "--halving": args.halving,
        "--eta": args.eta,
        "--stop-confidence": None if args.stop_confidence is None else f"{args.stop_confidence:g}",
        "--log": args.log,
        "--name": args.name,
    }
    return ["sweep", *args.specs, *option_words(options), *runs_dir_words(args), *comparison_words(args)]
