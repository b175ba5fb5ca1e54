"""`bytetwin record`: finished runs of one spec, one per seed, as a folder to hand in."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from shared.cli.command import CommandResult, add_runs_dir_argument, console, say, say_error
from shared.cli.scoring import say_prose
from shared.runs.finished_run import FinishedRun, read_finished
from shared.runs.target import run_named
from shared.study.groups import Group, check_comparable, find_finished_runs
from shared.study.record import (
    TRAIN_SCRIPT,
    Author,
    check_one_experiment,
    over_budget,
    scripts,
    submission,
    write_record,
)
from shared.study.record_text import default_blurb, readme
from shared.study.significance import Significance, significance

RECORDS = Path("records")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's name or folder; one run per seed")
    add_runs_dir_argument(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"default: {RECORDS}/NAME of the first run")
    parser.add_argument("--replace", action="store_true", help="overwrite an existing record")
    parser.add_argument(
        "--against",
        metavar="RECORD",
        help="a record, or a folder of runs: say whether it is beaten by 0.005 nats per symbol at p < 0.01",
    )
    parser.add_argument("--author", metavar="NAME", help="who made it")
    parser.add_argument("--github", metavar="ID", help="the author's GitHub name")
    parser.add_argument("--title", metavar="T", help="default: the spec's name")
    parser.add_argument("--blurb", metavar="TEXT", help="what is new in it; default: a sentence on the model")


def run(args: argparse.Namespace) -> CommandResult:
    """Write the folder; status 1, and nothing written, if an artifact is over the budget or an audit failed. Status 1
    too if the record that it is compared with is not beaten."""
    results = [read_finished(run_named(word, args.runs_dir)) for word in args.runs]
    first = results[0]
    check_one_experiment(results)
    results.sort(key=lambda result: result.seed)
    folder = args.output or RECORDS / first.path.resolve().name
    against = _against(args, results, folder)
    out = console()
    problems = [problem for result in results for problem in result.problems]
    code = {} if problems else scripts(results)
    code_bytes = len(code.get(TRAIN_SCRIPT, b""))
    problems = problems or over_budget(results, code_bytes)
    for problem in problems:
        say_error(out, f"no record: {problem}")
    if problems:
        return CommandResult({"folder": None, "problems": problems}, 1)
    author = Author(args.author, args.github)
    title, blurb = args.title or results[0].spec.name, args.blurb or default_blurb(results)
    document = submission(results, code_bytes, title, blurb, author, against)
    write_record(folder, results, readme(results, document, against), document, code, replace=args.replace)
    _print(out, folder, results, code_bytes, author)
    if against is not None:
        say_prose(out, against.text, "bold")
    status = int(against is not None and against.answer != "beaten")
    return CommandResult({"folder": str(folder), "problems": [], "submission": document}, status)


def _against(args: argparse.Namespace, results: list[FinishedRun], folder: Path) -> Significance | None:
    """Whether the record named by --against is beaten, None without one. Raises RunError for scores of another
    protocol."""
    if args.against is None:
        return None
    old = find_finished_runs([args.against], args.runs_dir)
    check_one_experiment(old)
    check_comparable([*results, *old])
    return significance(Group(folder.name, tuple(results)), Group(args.against, tuple(old)))


def _print(out: Console, folder: Path, results: list[FinishedRun], code_bytes: int, author: Author) -> None:
    for result in results:
        total = result.artifact_bytes + code_bytes
        say(out, f"seed {result.seed}: {result.score.bpb:.4f} bits per byte, {total:,} bytes")
    say(out, f"record {folder}")
    if author.name is None or author.github_id is None:
        say(out, "submission.json names no author: give --author NAME --github ID, with --replace", "yellow")
