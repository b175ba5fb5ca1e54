"""`bytetwin fit`: the scaling curve of a run, for `bytetwin preflight --fit`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shared.cli.command import CommandResult, console
from shared.errors import UserError
from shared.files import write_atomically
from shared.runs.target import run_named
from shared.study.scaling import ScalingResult, check_one_curve, fit_points, run_points


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare RUN..., --output and --symbols."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run's name or folder; several differ in seed or length"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: fit.json in the first run's folder")
    parser.add_argument(
        "--symbols", type=float, metavar="T", help="also say what the curve gives after T training symbols"
    )


def run(args: argparse.Namespace) -> CommandResult:
    """Fit, print and write. Raises UserError where there is too little to fit."""
    runs = [run_named(word) for word in args.runs]
    found = [(run, run.read_spec()) for run in runs]
    check_one_curve(found)
    if args.symbols is not None and not 0 < args.symbols < float("inf"):
        raise UserError(f"--symbols {args.symbols}: must be a number of symbols above 0")
    result = fit_points([point for directory, _ in found for point in run_points(directory)])
    path = args.output or found[0][0].path / "fit.json"
    document = result.to_document()
    write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
    out = console()
    _print(out, result)
    if args.symbols is not None:
        projected = result.curve.bpb(args.symbols)
        document = {**document, "symbols": args.symbols, "projected_bpb": projected}
        out.print(f"after {args.symbols:,.0f} symbols at constant learning rate: {projected:.4f} bits per byte")
    out.print(f"fit {path}", markup=False, soft_wrap=True)
    return CommandResult({**document, "file": str(path)})


def _print(out: Console, result: ScalingResult) -> None:
    curve = result.curve
    table = Table(title=f"bpb = {curve.c:.4f} + {curve.a:.4g} T^-{curve.alpha:.4f}", title_justify="left")
    for heading in ("training symbols T", "measured", "fitted", "residual"):
        table.add_column(heading, justify="right")
    for point, residual in zip(result.points, result.residuals_bpb, strict=True):
        table.add_row(f"{point.symbols:,}", f"{point.bpb:.4f}", f"{point.bpb - residual:.4f}", f"{residual:+.4f}")
    out.print(table)
    out.print(
        f"{len(result.points)} points, residuals {result.rms_bpb:.4f} rms, R^2 {result.r_squared:.4f}; without the "
        f"last point the curve misses it by {_miss(result.last_out_bpb)}",
        soft_wrap=True,
    )
    first, last = result.points[0].symbols, result.points[-1].symbols
    out.print(f"measured from {first:,} to {last:,} symbols; beyond that it is an extrapolation", soft_wrap=True)


def _miss(last_out_bpb: float | None) -> str:
    return (
        "an unknown amount (too few points)"
        if last_out_bpb is None
        else f"{last_out_bpb:+.4f} (measured minus predicted)"
    )
