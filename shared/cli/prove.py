"""`bytetwin prove`: real text coded with an artifact, decoded and compared, its file beside its score."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from data.datasets import open_split
from data.stream import SymbolStream
from shared.cli.coding import add_coding_engine_argument, load_codec
from shared.cli.command import (
    CommandResult,
    add_output_argument,
    add_runs_dir_argument,
    add_set_argument,
    console,
    positive,
    result_console,
    say,
    write_document,
)
from shared.cli.scoring import progress_bar, say_prose
from shared.cli.tables import make_table
from shared.coding.proof import Proof, prove
from shared.engine.package import create_scorer
from shared.scoring.adaptation import score_adapted
from shared.scoring.bits_per_byte import score_by_spec
from shared.scoring.evaluate import sampled
from shared.scoring.windows import check_window

DEFAULT_BYTES = 100_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("target", metavar="RUN|ARTIFACT", help="a run that has an artifact, or a .btw file")
    parser.add_argument("--data", metavar="NAME", help="dataset whose held-out text is coded; default: the spec's")
    parser.add_argument(
        "--bytes",
        type=positive,
        default=DEFAULT_BYTES,
        metavar="N",
        help="code a fixed sample of documents of about N bytes, the one that `score --max-symbols` takes; default "
        "%(default)s",
    )
    add_coding_engine_argument(parser)
    add_set_argument(parser, "change how the model adapts", "evaluation.adaptation")
    add_runs_dir_argument(parser)
    add_output_argument(parser, "write the figures here too, as JSON")


def run(args: argparse.Namespace) -> CommandResult:
    """Score, code, decode, compare; status 1 if the text is another or the file is not as large as the score says."""
    target, codec = load_codec(args.target, args.engine, args.overrides, args.runs_dir)
    whole = open_split(args.data or target.spec.data.heldout, "heldout", target.spec.vocabulary)
    stream = sampled(whole, max(1, args.bytes * whole.num_symbols // whole.num_bytes))
    check_window(target.spec.model.seq_len, stream.num_symbols)
    out, engine, spec = console(), codec.learner_name(), codec.adapted_spec()
    score_text = score_adapted if spec.evaluation.adaptation.is_on else score_by_spec
    with progress_bar(out, f"scoring {stream.name} on {engine}", "symbols") as progress:
        score = score_text(create_scorer(engine, spec, target.weights), stream, progress=progress)
    with progress_bar(out, "compressing and decompressing it", "symbols") as progress:
        proof = prove(codec, stream, score, progress)
    print_proof(result_console(args), args.target, stream, engine, proof)
    document = {
        **proof.to_document(),
        "engine": engine,
        "adaptation": spec.evaluation.adaptation.kind,
        "artifact_sha256": target.artifact_sha256,
        "dataset": {"name": stream.name, "sha256": stream.sha256},
    }
    path: Path | None = args.output
    if path is not None:
        write_document(path, document)
    return CommandResult(document, 0 if proof.passed else 1)


def print_proof(out: Console, source: str, stream: SymbolStream, engine: str, proof: Proof) -> None:
    """Print file and score side by side, and the verdict."""
    table = make_table(f"{source} on {stream.name}, scored on {engine}", ("what",), ("bytes", "bits per byte"))
    table.add_row("text", f"{proof.text_bytes:,}", "")
    for name, size in (
        ("head", f"{proof.head_bytes:,}"),
        (f"escapes: {proof.coded.escapes}", f"{proof.coded.escape_bytes:,.1f}"),
        ("payload, escapes included", f"{len(proof.coded.payload):,}"),
    ):
        table.add_row(f"file, {name}", size, "")
    table.add_row("file", f"{proof.file_bytes:,}", f"{proof.file_bpb:.5f}", style="bold")
    table.add_row("score", f"{proof.score.bpb * proof.text_bytes / 8:,.1f}", f"{proof.score.bpb:.5f}", style="bold")
    out.print(table)
    least, most = proof.limits
    allowed = f"from {least:+.4%} to {most:+.4%} is allowed: 0.1% either way, the head and the last byte"
    say_prose(out, f"the file is {proof.difference:+.4%} off the score; {allowed}")
    for name, seconds in (("compressed", proof.compress_s), ("decompressed", proof.decompress_s)):
        say(out, f"{name} in {seconds:.1f} s, {proof.text_bytes / seconds:,.0f} bytes per second")
    if proof.passed:
        say(out, "passed: decompressed to the same symbols and bytes", "green")
    else:
        why = "the file is not as large as the score says" if proof.verified else "decompressed to another text"
        say(out, f"FAILED: {why}", "red")
