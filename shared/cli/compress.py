"""`bytetwin compress`: a file coded with a model, in about as many bits as its score says."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from shared.cli.coding import SUFFIX, add_model_arguments, load_codec, output_path, read_input
from shared.cli.command import CommandResult, add_output_argument, add_set_argument, console, result_console, say
from shared.cli.scoring import progress_bar
from shared.coding.codec import parts_text
from shared.coding.text import symbols_of
from shared.files import write_atomically


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="any file; text where the model reads tokens")
    add_model_arguments(parser)
    add_set_argument(parser, "change how the model adapts", "evaluation.adaptation")
    add_output_argument(parser, f"default: FILE{SUFFIX}, if there is no such file yet")


def run(args: argparse.Namespace) -> CommandResult:
    """Write the coded file."""
    content = read_input(args.file)
    path = output_path(args, Path(f"{args.file}{SUFFIX}"))
    target, codec = load_codec(args.model, args.engine, args.overrides, args.runs_dir)
    symbols = symbols_of(target.spec.vocabulary, content, str(args.file))
    begin = time.perf_counter()
    with progress_bar(console(), f"compressing {args.file.name}", "symbols") as progress:
        coded_file, coded = codec.compress(symbols, progress=progress)
    seconds = time.perf_counter() - begin
    write_atomically(path, coded_file)
    shown = result_console(args)
    bpb = 8 * len(coded_file) / len(content) if content else 0.0
    say(shown, f"{path}: {len(coded_file):,} bytes of {len(content):,}, {bpb:.4f} bits per byte")
    say(shown, parts_text(len(coded_file), coded))
    return CommandResult(
        {
            "file": str(path),
            "bytes": len(coded_file),
            "text_bytes": len(content),
            "symbols": len(symbols),
            "payload_bytes": len(coded.payload),
            "escapes": coded.escapes,
            "artifact_sha256": target.artifact_sha256,
            "adaptation": codec.adapted_spec().evaluation.adaptation.kind,
            "seconds": seconds,
        }
    )
