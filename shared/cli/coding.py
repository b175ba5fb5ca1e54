"""Shared by `compress`, `decompress` and `prove`: their arguments, the codec behind them, names of files."""

from __future__ import annotations

import argparse
from pathlib import Path

import bytetwin
from shared.cli.command import RUNS_DIR, add_engine_argument
from shared.coding.codec import Codec
from shared.errors import UserError
from shared.files import check_regular
from shared.runs.target import Target, refuse_run_artifact

SUFFIX = ".btz"


def add_coding_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --engine."""
    parser.add_argument("--model", required=True, metavar="ARTIFACT", help="a .btw file, or a run that has one")
    add_engine_argument(parser, oracle=True)


def load_codec(source: str, engine: str | None, runs_dir: Path = RUNS_DIR) -> tuple[Target, Codec]:
    """(an artifact, the codec of it). Without an engine NumPy computes, or torch where it is installed."""
    target = bytetwin.load(source, weights="packed", runs_dir=runs_dir)
    return target, bytetwin.codec(target, engine)


def read_input(path: Path) -> bytes:
    """The bytes of a file. Raises OSError for what is not one."""
    check_regular(path)
    return path.read_bytes()


def output_path(args: argparse.Namespace, default: Path) -> Path:
    """--output, or the default where no file has that name yet. Raises UserError if it is one of the inputs."""
    path: Path = args.output or default
    if args.output is None and path.exists():
        raise UserError(f"{path} is there already; --output {path} overwrites it")
    for source in (args.file, Path(args.model)):
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(f"--output {path} is the input; name another file")
    refuse_run_artifact(path, "this")
    return path
