"""Shared by `compress`, `decompress` and `prove`: their arguments, the codec behind them, names of files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import bytetwin
from shared.cli.command import RUNS_DIR, add_runs_dir_argument
from shared.cli.scoring import with_section
from shared.coding.codec import Codec
from shared.engine.registry import ENGINES
from shared.errors import UserError
from shared.files import check_regular
from shared.runs.target import Target, refuse_run_artifact

SUFFIX = ".btz"
SECTION = "evaluation.adaptation"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --runs-dir, --engine."""
    parser.add_argument(
        "--model", required=True, metavar="RUN|ARTIFACT", help="a run that has an artifact, or a .btw file"
    )
    add_runs_dir_argument(parser)
    add_coding_engine_argument(parser)


def add_coding_engine_argument(parser: argparse.ArgumentParser) -> None:
    """--engine."""
    choices = [*ENGINES, "numpy"]
    parser.add_argument(
        "--engine",
        choices=choices,
        help="what computes the distributions in float64 and, with adaptation, learns; default: what is fastest",
    )


def load_codec(
    source: str, engine: str | None, overrides: Sequence[str] = (), runs_dir: Path = RUNS_DIR
) -> tuple[Target, Codec]:
    """(an artifact, the codec of it) with `--set` of the adaptation. Raises UserError for one of anything else."""
    target = bytetwin.load(source, weights="packed", runs_dir=runs_dir)
    adaptation = with_section(target.spec, overrides, SECTION, "coding").evaluation.adaptation
    return target, bytetwin.codec(target, engine, adaptation)


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
