"""`bytetwin decompress`: the file behind one of `bytetwin compress`, whole and checked, or none."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from shared.cli.coding import SUFFIX, add_model_arguments, load_codec, output_path, read_input
from shared.cli.command import CommandResult, add_output_argument, console, result_console, say
from shared.cli.scoring import progress_bar
from shared.errors import DataError, UserError
from shared.files import write_atomically


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a file of `bytetwin compress`")
    add_model_arguments(parser)
    add_output_argument(parser, f"default: FILE without {SUFFIX}, if there is no such file yet")


def run(args: argparse.Namespace) -> CommandResult:
    """Decode the file, and write the text once it is known to be right."""
    if args.output is None and (args.file.suffix != SUFFIX or args.file.stem == SUFFIX):
        raise UserError(f"{args.file}: its name does not end in {SUFFIX}; --output says what to write")
    path = output_path(args, args.file.with_suffix(""))
    content = read_input(args.file)
    target, codec = load_codec(args.model, args.engine, runs_dir=args.runs_dir)
    begin = time.perf_counter()
    with progress_bar(console(), f"decompressing {args.file.name}", "symbols") as progress:
        try:
            symbols, text = codec.decompress(content, progress)
        except DataError as error:
            raise DataError(f"{args.file}: {error}") from None
    seconds = time.perf_counter() - begin
    write_atomically(path, text)
    say(result_console(args), f"{path}: {len(text):,} bytes")
    return CommandResult(
        {
            "file": str(path),
            "bytes": len(text),
            "symbols": len(symbols),
            "artifact_sha256": target.artifact_sha256,
            "seconds": seconds,
        }
    )
