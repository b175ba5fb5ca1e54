"""`bytetwin score`: bits per byte of a run or an artifact on held-out text, with everything that qualifies it.

A score made as the run itself would have made it replaces score.json of the run, which repairs a run whose artifact was
packed again. Any other score is written only to --output.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console

import bytetwin
from data.datasets import open_split
from shared.cli.command import (
    CommandResult,
    add_engine_argument,
    add_output_argument,
    add_runs_dir_argument,
    add_set_argument,
    console,
    result_console,
    say,
)
from shared.cli.scoring import (
    add_step_argument,
    add_text_arguments,
    print_checks,
    progress_bar,
    say_prose,
    say_warnings,
    with_section,
)
from shared.cli.tables import make_table
from shared.runs.target import Target
from shared.scoring.bits_per_byte import Score
from shared.scoring.document import ScoreDocument, write_score
from shared.scoring.duration import within
from shared.scoring.evaluate import with_compressors
from shared.scoring.resume import ScoreState
from shared.training.own_score import replace_score, why_not_own
from shared.units import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("target", metavar="RUN|ARTIFACT", help="a run's name or folder, or a .btw file")
    add_runs_dir_argument(parser)
    add_text_arguments(parser)
    add_engine_argument(parser, oracle=True, unless="that of the run, or ")
    add_set_argument(parser, "change how the score is made", "evaluation")
    parser.add_argument("--stride", type=int, metavar="SYMBOLS", help="default: the spec's evaluation.stride_symbols")
    parser.add_argument(
        "--weights",
        choices=["packed", "averaged", "trained", "best"],
        help="of a run: its artifact (default), the averaged or trained weights of its last checkpoint, or the weights "
        "of the one that was best on held-out text, which makes the score optimistic",
    )
    add_step_argument(parser)
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="end after the first passes if all of them would take longer"
    )
    add_output_argument(parser, "write the score document here, not into the run")


def run(args: argparse.Namespace) -> CommandResult:
    """Score and audit; status 1 if a check of the audit fails."""
    target = bytetwin.load(args.target, weights=args.weights, step=args.step, runs_dir=args.runs_dir)
    target = replace(target, spec=with_section(target.spec, args.overrides, "evaluation.", "a score"))
    say_warnings(console(), target)
    data = args.data or target.spec.data.heldout
    out = console()
    scores: list[Score] = []
    state = _state(args, target, out)
    with progress_bar(out, f"scoring {target.source} on {data}", "symbols") as progress:

        def on_score(score: Score) -> None:
            scores.append(score)
            progress(0, None, f"auditing the score of {target.source}")

        document = bytetwin.score(
            target,
            data=data,
            engine=args.engine,
            stride=args.stride,
            max_symbols=args.max_symbols,
            progress=progress if args.minutes is None else within(args.minutes, progress),
            on_score=on_score,
            state=state,
        )
    shown = result_console(args)
    print_score(shown, document)
    path = _save(args, target, document, scores[0], out)
    if state is not None:
        state.remove()
    if not document.compressors:
        stream = open_split(data, "heldout", target.spec.vocabulary)
        with progress_bar(out, f"compressing {stream.name} with xz, zstd and brotli", "bytes") as progress:
            document = with_compressors(document, stream, args.max_symbols, progress)
        for name, result in document.compressors.items():
            shown.print(f"{name}: {result.bpb:.4f} bits per byte, {result.compressed_bytes:,} bytes")
        if path is not None:
            write_score(path, document)
    return CommandResult(document.to_dict(), 0 if document.audit.passed else 1)


def _state(args: argparse.Namespace, target: Target, out: Console) -> ScoreState | None:
    """Where the score is kept while it is under way: beside its document, or in the run if that may be written."""
    path: Path | None = args.output
    if path is None and target.run is not None and os.access(target.run.path, os.W_OK):
        path = target.run.score_path
    if path is None:
        return None
    return ScoreState.beside(path, lambda line: say(out, line))


def _save(args: argparse.Namespace, target: Target, document: ScoreDocument, score: Score, out: Console) -> Path | None:
    """Write the document to --output, or to score.json of the run if it is the run's own score; returns where."""
    path: Path | None = args.output
    if path is not None:
        write_score(path, document)
    elif target.run is not None:
        other = why_not_own(target.run, target.spec, document)
        if other:
            say(out, f"not written to {target.run.score_path}: {other}; --output FILE keeps it")
            return None
        path = target.run.score_path
        replace_score(target.run, document, score)
    if path is not None:
        say(out, f"score {path}")
    return path


def print_score(out: Console, document: ScoreDocument) -> None:
    """Print the score with its protocol, the compressors on the same text, and the audit."""
    columns = ("bits per byte", "text in bytes", "model in bytes")
    table = make_table(f"{document.spec_name} on {document.dataset.name}", ("what",), columns)
    packed = "" if document.artifact_bytes is None else f"{document.artifact_bytes:,} + {document.code_bytes:,} code"
    figures = (f"{document.bpb:.4f}", f"{document.bpb * document.bytes / 8:,.0f}", packed)
    table.add_row(f"{document.spec_name} ({document.weights} weights)", *figures, style="bold")
    for name, result in document.compressors.items():
        table.add_row(name, f"{result.bpb:.4f}", f"{result.compressed_bytes:,}", "")
    out.print(table)
    for line in score_lines(document):
        say_prose(out, line)
    print_checks(out, document.audit.checks)


def score_lines(document: ScoreDocument) -> list[str]:
    """The facts that a reader needs along with the figure, one a line."""
    dataset = document.dataset
    whole = "all of it" if dataset.complete else "a fixed sample of its documents"
    lines = [
        document.confidence.text,
        f"text: {counted(document.bytes, 'byte')}, {counted(document.documents, 'document')}, {whole}, "
        f"sha256 {dataset.sha256[:16]}",
        f"protocol: {counted(document.symbols, 'symbol')}, each once, {document.windows_text}, "
        f"engine {document.engine}",
    ]
    if document.chosen is not None:
        lines.append(f"weights: {document.chosen}")
    if document.artifact_bytes is not None:
        total, limit = document.total_bytes, document.limit_bytes
        lines.append(f"size: {total:,} bytes of {limit:,}{'' if total <= limit else ': OVER the budget'}")
    return lines
