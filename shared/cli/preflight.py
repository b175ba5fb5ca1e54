"""`bytetwin preflight`: go or no-go before money is spent."""

from __future__ import annotations

import argparse
from pathlib import Path

from data.datasets import bind_tokenizer
from shared.cli.command import (
    CommandResult,
    add_engine_argument,
    add_output_argument,
    add_runs_dir_argument,
    add_spec_arguments,
    console,
    number_type,
    result_console,
    spec_from_arguments,
    write_document,
)
from shared.cli.sizes import print_sizes, sizes_of
from shared.engine.package import engine_package, keep_compiled
from shared.preflight import ROWS, Question, preferred_engine, print_rows, print_verdict, run_preflight
from shared.preflight.ask_rows import check_row_names
from shared.runs.scaling_curve import read_fit


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; --help lists the rows."""
    add_spec_arguments(parser)
    add_engine_argument(parser, unless="the first that has a GPU, or ")
    dollars = number_type(float, lambda value: 0.0 <= value < float("inf"), "a number of dollars, 0 or more")
    parser.add_argument("--ranks", type=int, metavar="N", help="GPUs that will train; default all of every node, or 1")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="machines like this one; default %(default)s")
    parser.add_argument("--price", type=dollars, metavar="DOLLARS", help="price of one GPU-hour, for the row cost")
    parser.add_argument(
        "--fit",
        type=Path,
        metavar="FILE",
        help="JSON with c, a, alpha of bpb = c + a T^-alpha, T training symbols, as `bytetwin fit` writes it; default: "
        "the fit of a run whose curve is the spec's",
    )
    parser.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="ROW",
        help="count a no-go or risk of this row as go; may be repeated",
    )
    parser.add_argument("--strict", action="store_true", help="refuse risks too: status 1 if a row says risk")
    parser.add_argument("--quick", action="store_true", help="check shards by size alone, without hashing")
    parser.add_argument(
        "--as-trained", action="store_true", help="check causality in the spec's dtype and compiled on a CPU too"
    )
    add_output_argument(parser, "also write the JSON document to this file")
    add_runs_dir_argument(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    width = max(map(len, ROWS))
    parser.epilog = "rows:\n" + "\n".join(f"  {name:<{width}}  {question}" for name, question in ROWS.items())


def run(args: argparse.Namespace) -> CommandResult:
    """Evaluate every row and show what fits; status 1 if one is a no-go, or with --strict a risk, and is not forced."""
    spec = bind_tokenizer(spec_from_arguments(args))
    check_row_names(args.force)
    fit = read_fit(args.fit) if args.fit else None
    engine = args.engine or preferred_engine()
    keep_compiled(engine, args.runs_dir)
    facts = engine_package(engine).device_facts()
    gpus = len(facts.names) if facts.kind == "gpu" else 1
    ranks = args.nodes * gpus if args.ranks is None else args.ranks
    question = Question(spec, engine, ranks, args.price, fit, args.runs_dir, args.quick, args.nodes, args.as_trained)
    with console().status("preflight") as status:
        report = run_preflight(question, args.force, lambda what: status.update(f"preflight: {what}"), args.strict)
    sizes, shown = sizes_of(spec, engine), result_console(args)
    print_rows(shown, report)
    print_sizes(shown, sizes)
    print_verdict(shown, report)
    document = {**report.to_document(), "sizes": sizes.to_document()}
    if args.output:
        write_document(args.output, document)
    return CommandResult(document, status=0 if report.go else 1)
