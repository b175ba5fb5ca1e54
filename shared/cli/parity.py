"""`bytetwin parity`: the same weights on every implementation installed, compared number by number."""

from __future__ import annotations

import argparse

from shared.cli.command import CommandResult, add_spec_arguments, console, result_console, spec_from_arguments
from shared.parity import DEFAULT_STEPS, print_report, run_parity


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_spec_arguments(parser)
    parser.add_argument(
        "--steps", type=int, default=DEFAULT_STEPS, help="steps of the loss curve (default %(default)s)"
    )
    parser.add_argument(
        "--seq-len", type=int, metavar="SYMBOLS", help="symbols in a compared window (default about 64)"
    )


def run(args: argparse.Namespace) -> CommandResult:
    """Run every check; exit status 1 if any row is outside its tolerance."""
    spec = spec_from_arguments(args)
    out = console()
    with out.status("parity") as status:
        report = run_parity(spec, args.steps, args.seq_len, announce=lambda check: status.update(f"parity: {check}"))
    print_report(result_console(args), report)
    return CommandResult(report.to_document(), status=0 if report.passed else 1)
