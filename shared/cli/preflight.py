"""`bytetwin preflight`: go or no-go before money is spent."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from data.datasets import bind_tokenizer
from shared.cli.command import (
    CommandResult,
    add_engine_argument,
    add_spec_arguments,
    console,
    spec_from_arguments,
)
from shared.engine.package import engine_package
from shared.errors import UserError
from shared.files import write_atomically
from shared.preflight import ROWS, Question, preferred_engine, print_report, run_preflight
from shared.preflight.ask_rows import check_row_names
from shared.runs.scaling_curve import read_curve


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare SPEC, --set and what else is asked; --help lists the rows."""
    add_spec_arguments(parser)
    add_engine_argument(parser)
    parser.add_argument("--ranks", type=int, metavar="N", help="GPUs that will train; default all of every node, or 1")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines like this one; default %(default)s")
    parser.add_argument("--price", type=_dollars, metavar="DOLLARS", help="price of one GPU-hour, for the row cost")
    parser.add_argument(
        "--fit", type=Path, metavar="FILE", help="JSON with c, a, alpha of bpb = c + a T^-alpha, T training symbols"
    )
    parser.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="ROW",
        help="count this row's no-go or risk as go; may be repeated",
    )
    parser.add_argument("--strict", action="store_true", help="refuse risks too: status 1 if a row says risk")
    parser.add_argument("--quick", action="store_true", help="check shards by size alone, without hashing")
    parser.add_argument(
        "--as-trained", action="store_true", help="check causality in the spec's dtype and compiled on a CPU too"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON document to this file")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="default %(default)s")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, ROWS))
    parser.epilog = "rows:\n" + "\n".join(f"  {name:<{width}}  {question}" for name, question in ROWS.items())


def run(args: argparse.Namespace) -> CommandResult:
    """Ask every row; status 1 if one says no-go, or with --strict risk, and is not forced."""
    spec = bind_tokenizer(spec_from_arguments(args))
    check_row_names(args.force)
    fit = read_curve(args.fit) if args.fit else None
    if args.output and not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: the folder {args.output.parent} does not exist")
    engine = args.engine or preferred_engine()
    facts = engine_package(engine).device_facts()
    gpus = len(facts.names) if facts.kind == "gpu" else 1
    ranks = args.nodes * gpus if args.ranks is None else args.ranks
    question = Question(spec, engine, ranks, args.price, fit, args.runs_dir, args.quick, args.nodes, args.as_trained)
    out = console()
    with out.status("preflight") as status:
        report = run_preflight(question, args.force, lambda what: status.update(f"preflight: {what}"), args.strict)
    print_report(out, report)
    document = report.to_document()
    if args.output:
        write_atomically(args.output, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())
    return CommandResult(document, status=0 if report.go else 1)


def _dollars(text: str) -> float:
    """A price, for argparse."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text}: must be a number of dollars, 0 or more")
    return value
