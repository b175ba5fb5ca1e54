"""What `sweep` and `compare` share: arguments, and what becomes of a comparison."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from shared.errors import UserError
from shared.files import write_atomically
from shared.runs.finished_run import FinishedRun
from shared.study.comparison import LEVEL, Comparison, compare_groups
from shared.study.groups import group_runs
from shared.study.table import markdown, print_comparison


def add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    """--baseline, --confidence, --margin-nats and --output."""
    parser.add_argument("--baseline", metavar="LABEL", help="group to compare the others with; default: the first")
    parser.add_argument(
        "--confidence", type=_level, default=LEVEL, metavar="LEVEL", help="of the intervals; default %(default)s"
    )
    parser.add_argument(
        "--margin-nats",
        type=_margin,
        default=0.0,
        metavar="NATS",
        help="test for better by this many nats per symbol of the baseline; a public record asks for 0.005",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the tables as markdown to this file")


def check_output(args: argparse.Namespace) -> None:
    """Raise UserError if --output could not be written, before hours are spent."""
    if args.output is not None and not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: the folder {args.output.parent} does not exist")


def comparison_words(args: argparse.Namespace) -> list[str]:
    """The arguments of a comparison as they stand on a command line, without --output."""
    words = ["--baseline", args.baseline] if args.baseline is not None else []
    if args.confidence != LEVEL:
        words += ["--confidence", f"{args.confidence:g}"]
    return [*words, "--margin-nats", f"{args.margin_nats:g}"] if args.margin_nats else words


def compare_runs(
    args: argparse.Namespace, runs: Sequence[FinishedRun], out: Console, *, title: str, words: Sequence[str]
) -> Comparison:
    """Compare, print, and write the tables if asked for; `words` is the command line that makes them again."""
    groups = group_runs(runs)
    comparison = compare_groups(groups, baseline=args.baseline, level=args.confidence, margin_nats=args.margin_nats)
    print_comparison(out, comparison)
    if args.output is not None:
        text = markdown(comparison, title, shlex.join(["bytetwin", *words]))
        write_atomically(args.output, text.encode())
        out.print(f"comparison {args.output}", markup=False, soft_wrap=True)
    return comparison


def _level(text: str) -> float:
    value = float(text)
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text}: must lie between 0 and 1")
    return value


def _margin(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a number of nats, 0 or more")
    return value
