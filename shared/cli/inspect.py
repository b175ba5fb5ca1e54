"""`bytetwin inspect`: where the bytes and the loss of a packed model sit, tensor by tensor, and what would fit."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from shared.artifact import Artifact, pack_bytes, read_artifact, unpack_bytes
from shared.artifact.inspection import COST_HEADING, Costs, TensorFacts, histogram_text, inspect_artifact
from shared.cli.command import (
    CommandResult,
    add_engine_argument,
    add_runs_dir_argument,
    add_set_argument,
    console,
    positive,
    result_console,
    say,
)
from shared.cli.costs import COST_SYMBOLS, measure_costs
from shared.cli.scoring import calibrated, default_engine, say_prose, say_warnings
from shared.cli.sizes import show_sizes
from shared.cli.tables import make_table
from shared.errors import UserError
from shared.runs.target import Target, find_run, load_trained
from shared.spec import load_spec


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("target", metavar="RUN|ARTIFACT", nargs="?", help="a run's name or folder, or a .btw file")
    add_runs_dir_argument(parser)
    parser.add_argument(
        "--loss",
        action="store_true",
        help="of a run: also what storing each tensor alone costs, measured on training text; takes a pass each",
    )
    parser.add_argument(
        "--symbols", type=positive, default=COST_SYMBOLS, metavar="N", help="of that text; default %(default)s"
    )
    add_engine_argument(parser, oracle=True)
    parser.add_argument(
        "--sizes", metavar="SPEC", help="before training: which shapes of a spec fit the budget, and stored how"
    )
    add_set_argument(parser, "with --sizes: change one field of the spec")


def run(args: argparse.Namespace) -> CommandResult:
    """Show every tensor of an artifact, or the size table of a spec."""
    if (args.target is None) == (args.sizes is None):
        raise UserError("name a RUN or an ARTIFACT, or a spec with --sizes SPEC")
    if args.sizes is not None:
        return show_sizes(result_console(args), load_spec(args.sizes, args.overrides), args.engine)
    if args.overrides:
        raise UserError(f"--set applies to a spec, with --sizes; {args.target} has its own")
    artifact, floats = _read(args)
    facts = inspect_artifact(artifact)
    costs = None
    if args.loss:
        if floats is None:
            raise UserError(f"{args.target}: --loss needs the float weights of a run, an artifact has none")
        costs = measure_costs(args.engine or default_engine(), artifact, floats, args.symbols)
    print_facts(result_console(args), args.target, artifact, facts, costs)
    return CommandResult(_document(artifact, facts, costs))


def _read(args: argparse.Namespace) -> tuple[Artifact, Target | None]:
    """The artifact, and the float weights behind it where it is that of a run and they are asked for.

    A run that has no artifact yet is packed in memory as it would pack itself.
    """
    found = find_run(args.target, args.runs_dir)
    if found is None:
        load_trained(args.target, runs_dir=args.runs_dir)  # refuses what is no artifact, in its own words
        return read_artifact(args.target), None
    is_packed = found.artifact_path.exists()
    if is_packed and not args.loss:
        return read_artifact(found.artifact_path), None
    floats = load_trained(args.target, "averaged", runs_dir=args.runs_dir)
    say_warnings(console(), floats)
    if is_packed:
        return read_artifact(found.artifact_path), floats
    say(console(), f"{found.path} has no artifact yet: shown is what its last checkpoint packs into")
    made = calibrated(args.engine or default_engine(), floats.spec, floats.weights)
    return unpack_bytes(pack_bytes(floats.spec, floats.weights, statistics=made.statistics if made else None)), floats


def print_facts(out: Console, source: str, artifact: Artifact, facts: list[TensorFacts], costs: Costs | None) -> None:
    """Print the table: a line for each tensor of codes, one for all others."""
    info = artifact.info
    title = f"{source}: {info.artifact_bytes:,} bytes, {info.bits_per_weight:.3f} bits per weight"
    numbers = ("weights", "bytes", "bits each", "coded", "entropy", "Gaussian")
    table = make_table(title, ("tensor", "stored"), (*numbers, *((COST_HEADING,) if costs else ())))
    table.add_column("codes", no_wrap=True)
    plain = [each for each in facts if each.code_bits is None]
    for each in facts:
        if each.code_bits is None:
            continue
        figures = [each.code_bits, each.entropy_bits, each.gaussian_bits]
        loss = [costs.of(each.name)] if costs else []
        sizes = [f"{each.weights:,}", f"{each.stored_bytes:,.0f}", f"{each.bits_per_weight:.3f}"]
        words = [each.name.removesuffix(".weight"), f"{each.method} {each.bits}"]
        table.add_row(*words, *sizes, *(f"{figure:.3f}" for figure in figures), *loss, histogram_text(each.histogram))
    rest = [
        (f"{len(plain)} other tensors", "float32", sum(each.weights for each in plain), _bytes_of(plain)),
        ("header", "", 0, float(info.header_bytes)),
        ("together", "", info.parameters, float(info.artifact_bytes)),
    ]
    for name, method, weights, size in rest:
        bits = f"{8 * size / weights:.3f}" if weights else ""
        loss = [f"{1e6 * costs.together:.1f}" if name == "together" else ""] if costs else []
        table.add_row(name, method, f"{weights:,}" if weights else "", f"{size:,.0f}", bits, "", "", "", *loss, "")
    out.print(table)
    if costs:
        say_prose(out, str(costs))


def _bytes_of(facts: list[TensorFacts]) -> float:
    return sum(each.stored_bytes for each in facts)


def _document(artifact: Artifact, facts: list[TensorFacts], costs: Costs | None) -> dict[str, Any]:
    info = artifact.info
    rows = [each.to_document() for each in facts]
    document = {
        "artifact_bytes": info.artifact_bytes,
        "header_bytes": info.header_bytes,
        "parameters": info.parameters,
        "bits_per_weight": info.bits_per_weight,
        "sha256": info.sha256,
        "tensors": rows,
    }
    if costs is None:
        return document
    for row in rows:
        row["loss_bpb"] = costs.by_tensor.get(row["name"], 0.0)
    return {
        **document,
        "loss_bpb": costs.together,
        "summed_loss_bpb": costs.total,
        "loss_symbols": costs.symbols,
        "loss_text": costs.text,
    }
