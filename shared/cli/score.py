"""`bytetwin score`: bits per byte of a run or an artifact on held-out text, with all that qualifies it."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from shared.cli.command import CommandResult, add_engine_argument, console
from shared.cli.scoring import add_text_arguments, check_lines, default_engine, progress_bar
from shared.engine import create_scorer
from shared.scoring.evaluate import evaluate
from shared.scoring.report import ScoreDocument
from shared.scoring.stream import open_split
from shared.training.run_data import check_target_data
from shared.training.target import load_trained

NAME = "score"
HELP = "bits per byte of a run or artifact on held-out text, under a stated protocol"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare RUN|ARTIFACT and what to score it on."""
    parser.add_argument("target", metavar="RUN|ARTIFACT", help="a run's name or folder, or a .btw file")
    add_text_arguments(parser)
    add_engine_argument(parser, oracle=True)
    parser.add_argument("--stride", type=int, metavar="SYMBOLS", help="default: the spec's evaluation.stride_symbols")
    parser.add_argument(
        "--weights",
        choices=["packed", "averaged", "trained"],
        help="of a run: its artifact (default), or the averaged or trained weights of its last checkpoint",
    )


def run(args: argparse.Namespace) -> CommandResult:
    """Score and audit; status 1 if a check of the audit fails."""
    target = load_trained(args.target, args.weights)
    engine = args.engine or default_engine()
    stream = open_split(args.data or target.spec.data.heldout, "heldout", target.spec.vocabulary)
    scorer = create_scorer(engine, target.spec, target.weights)
    out = console()
    with progress_bar(out, f"scoring {target.source} on {stream.name}", "symbols") as progress:
        document = evaluate(
            scorer,
            stream,
            engine=engine,
            weights=target.weights_name,
            artifact_bytes=target.artifact_bytes,
            stride=args.stride,
            max_symbols=args.max_symbols,
            progress=progress,
            data_checks=check_target_data(target, stream),
        )
    print_score(out, document)
    return CommandResult(document.to_dict(), 0 if document.audit.passed else 1)


def print_score(out: Console, document: ScoreDocument) -> None:
    """The score with its protocol, the compressors on the same text, and the audit, for people."""
    table = Table(title=f"{document.spec_name} on {document.dataset.name}", title_justify="left")
    table.add_column("what")
    table.add_column("bits per byte", justify="right")
    table.add_column("bytes", justify="right")
    packed = "" if document.artifact_bytes is None else f"{document.artifact_bytes:,} + {document.code_bytes:,} code"
    table.add_row(f"{document.spec_name} ({document.weights} weights)", f"{document.bpb:.4f}", packed, style="bold")
    for name, result in document.compressors.items():
        table.add_row(name, f"{result.bpb:.4f}", f"{result.compressed_bytes:,}")
    out.print(table)
    for line in score_lines(document):
        out.print(line, markup=False, soft_wrap=True)
    for line in check_lines(document.audit.checks):
        out.print(line, soft_wrap=True)


def score_lines(document: ScoreDocument) -> list[str]:
    """What a reader must know beside the figure, one fact a line."""
    interval, dataset = document.confidence, document.dataset
    within = (
        f"too little text for an interval ({interval.num_units} {interval.units})"
        if interval.low_bpb is None or interval.high_bpb is None
        else f"{interval.low_bpb:.4f} to {interval.high_bpb:.4f} ({interval.num_units} {interval.units})"
    )
    whole = "all of it" if dataset.complete else "a fixed sample of its documents"
    lines = [
        f"{interval.level:.0%} confidence: {within}",
        f"text: {document.bytes:,} bytes, {document.documents:,} documents, {whole}, sha256 {dataset.sha256[:16]}",
        f"protocol: {document.symbols:,} symbols, each once, windows of {document.window_symbols} by "
        f"{document.stride_symbols}, adaptation {document.adaptation}, engine {document.engine}",
    ]
    if document.artifact_bytes is not None:
        total, limit = document.artifact_bytes + document.code_bytes, document.limit_bytes
        lines.append(f"size: {total:,} bytes of {limit:,}{'' if total <= limit else ': OVER the budget'}")
    return lines
