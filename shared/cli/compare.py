"""`bytetwin compare`: finished runs, grouped by spec and compared over seeds and documents."""

from __future__ import annotations

import argparse

from shared.cli.command import CommandResult, console
from shared.cli.comparing import add_comparison_arguments, check_output, compare_runs, comparison_words
from shared.study.groups import find_finished_runs


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare RUN... and what every comparison asks."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run's name or folder, or a folder of runs such as a sweep's"
    )
    add_comparison_arguments(parser)


def run(args: argparse.Namespace) -> CommandResult:
    """Print the comparison; status 1 if a score does not count."""
    check_output(args)
    runs = find_finished_runs(args.runs)
    words = ["compare", *args.runs, *comparison_words(args)]
    comparison = compare_runs(args, runs, console(), title="Comparison", words=words)
    return CommandResult(comparison.to_document(), 1 if comparison.problems else 0)
