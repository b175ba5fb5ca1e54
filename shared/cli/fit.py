"""`bytetwin fit`: the scaling curve of a run, for `bytetwin preflight --fit`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from shared.cli.command import (
    CommandResult,
    add_confidence_argument,
    add_output_argument,
    add_runs_dir_argument,
    number_type,
    positive,
    result_console,
    say,
    write_document,
)
from shared.cli.scoring import say_prose
from shared.cli.tables import make_table
from shared.runs.scaling_curve import FIT_FILE, LEVEL
from shared.runs.target import run_named
from shared.study.scaling import LeftOut, ScalingResult, check_one_curve, fit_points, reasons_text, run_points


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's name or folder; runs differ in seed or length")
    add_runs_dir_argument(parser)
    add_output_argument(parser, "default: fit.json in the first run's folder")
    above_0 = number_type(float, lambda value: 0.0 < value < float("inf"), "a number of symbols above 0")
    parser.add_argument(
        "--symbols", type=above_0, metavar="T", help="also print what the curve predicts after T training symbols"
    )
    parser.add_argument("--from-step", type=positive, metavar="N", help="validations from this step on alone")
    parser.add_argument(
        "--to-step",
        type=positive,
        metavar="N",
        help="validations up to this step alone; of the steps asked for, one not at the full rate is refused",
    )
    add_confidence_argument(parser, LEVEL)


def run(args: argparse.Namespace) -> CommandResult:
    """Fit, print and write. Raises UserError where there is too little to fit."""
    runs = [run_named(word, args.runs_dir) for word in args.runs]
    found = [(run, run.read_spec()) for run in runs]
    check_one_curve(found)
    taken = [run_points(directory, args.from_step, args.to_step) for directory, _ in found]
    result = fit_points([point for points, _ in taken for point in points])
    left_out = [each for _, rest in taken for each in rest]
    path = args.output or found[0][0].path / FIT_FILE
    document = {**result.to_document(), "left_out": [asdict(each) for each in left_out]}
    write_document(path, document)
    out = result_console(args)
    _print(out, result, left_out)
    if args.symbols is not None:
        projected = result.fit.at(args.symbols, args.confidence)
        interval = {"low_bpb": projected.low_bpb, "high_bpb": projected.high_bpb, "confidence": projected.level}
        document = {**document, "symbols": args.symbols, "projected_bpb": projected.bpb, **interval}
        say_prose(
            out, f"after {args.symbols:,.0f} symbols at constant learning rate: {projected.text}, {projected.distance}"
        )
    say(out, f"fit {path}")
    return CommandResult({**document, "file": str(path)})


def _print(out: Console, result: ScalingResult, left_out: Sequence[LeftOut]) -> None:
    curve = result.curve
    title = f"bpb = {curve.c:.4f} + {curve.a:.4g} T^-{curve.alpha:.4f}"
    table = make_table(title, (), ("training symbols T", "measured", "fitted", "residual"))
    for point, residual in zip(result.points, result.residuals_bpb, strict=True):
        table.add_row(f"{point.symbols:,}", f"{point.bpb:.4f}", f"{point.bpb - residual:.4f}", f"{residual:+.4f}")
    out.print(table)
    miss = f"{result.last_out_bpb:+.4f} (measured minus predicted)" if result.last_out_bpb is not None else ""
    say_prose(
        out,
        f"{len(result.points)} points, residuals {result.rms_bpb:.4f} rms, R^2 {result.r_squared:.4f}; without the "
        f"last point the curve misses it by {miss or 'an unknown amount (too few points)'}",
    )
    if left_out:
        say_prose(out, f"left out: {reasons_text(left_out)}")
    first, last = result.points[0].symbols, result.points[-1].symbols
    say_prose(out, f"measured from {first:,} to {last:,} symbols; beyond that it is an extrapolation")
