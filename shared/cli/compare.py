"""`bytetwin compare`: finished runs, grouped by spec and compared over seeds and documents; also the end of a sweep."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from rich.console import Console

import bytetwin
from shared.cli.command import (
    CommandResult,
    add_confidence_argument,
    add_output_argument,
    add_runs_dir_argument,
    number_type,
    option_words,
    result_console,
    runs_dir_words,
    say,
)
from shared.files import write_atomically
from shared.runs.finished_run import FinishedRun
from shared.study.comparison import LEVEL, Comparison
from shared.study.groups import find_finished_runs
from shared.study.table import markdown, print_comparison


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run's name or folder, a sweep's folder, or a record's"
    )
    add_runs_dir_argument(parser)
    add_comparison_arguments(parser)


def run(args: argparse.Namespace) -> CommandResult:
    """Print the comparison; status 1 if a score does not count."""
    runs = find_finished_runs(args.runs, args.runs_dir)
    words = ["compare", *args.runs, *runs_dir_words(args), *comparison_words(args)]
    comparison = compare_runs(args, runs, result_console(args), title="Comparison", words=words)
    return CommandResult(comparison.to_document(), 1 if comparison.problems else 0)


def add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    """--baseline, --confidence, --margin-nats and --output."""
    parser.add_argument("--baseline", metavar="LABEL", help="group to compare the others with; default: the first")
    add_confidence_argument(parser, LEVEL)
    parser.add_argument(
        "--margin-nats",
        type=number_type(float, lambda value: 0.0 <= value < float("inf"), "a number of nats, 0 or more"),
        default=0.0,
        metavar="NATS",
        help="test whether a group beats the baseline by this many nats per symbol; a public record asks for 0.005",
    )
    add_output_argument(parser, "also write the tables as markdown to this file")


def comparison_words(args: argparse.Namespace) -> list[str]:
    """The arguments of a comparison as they stand on a command line, without --output."""
    level = None if args.confidence == LEVEL else f"{args.confidence:g}"
    margin = f"{args.margin_nats:g}" if args.margin_nats else None
    return option_words({"--baseline": args.baseline, "--confidence": level, "--margin-nats": margin})


def compare_runs(
    args: argparse.Namespace,
    runs: Sequence[FinishedRun],
    out: Console,
    *,
    title: str,
    words: Sequence[str],
    halving: Sequence[str] = (),
) -> Comparison:
    """Compare, print, and write the tables if asked for; `words` is the command line that does so again, `halving` what
    is to be said of the runs that were stopped."""
    comparison = bytetwin.compare(runs, baseline=args.baseline, level=args.confidence, margin_nats=args.margin_nats)
    print_comparison(out, comparison)
    for line in halving:
        say(out, line)
    if args.output is not None:
        text = markdown(comparison, title, shlex.join(["bytetwin", *words]), halving)
        write_atomically(args.output, text.encode())
        say(out, f"comparison {args.output}")
    return comparison
