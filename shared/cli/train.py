"""`bytetwin train`: trains, packs and scores, in a run directory that can be resumed."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from shared.cli.command import (
    CommandResult,
    add_engine_argument,
    add_spec_arguments,
    console,
    spec_from_arguments,
)
from shared.cli.score import print_score
from shared.engine import ENGINE_PACKAGES, available_engines
from shared.errors import UserError
from shared.training.console import make_observer
from shared.training.finish import Finished
from shared.training.run import RunResult, train_run

NAME = "train"
HELP = "train a spec, pack the weights and score the artifact; exit status 130 or 143 after a signal"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare SPEC, --set, --engine, --run, --resume, --runs-dir and --no-finish."""
    add_spec_arguments(parser)
    add_engine_argument(parser)
    parser.add_argument("--run", metavar="NAME", help="name of the run; default SPEC-ENGINE-N")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run from its last checkpoint, if it has one"
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--no-finish", action="store_true", help="stop after training: do not pack, do not score")


def run(args: argparse.Namespace) -> CommandResult:
    """Train; status 1 if training broke down or a check said no, 128 + signal number if it was stopped."""
    spec = spec_from_arguments(args)
    out = console()
    with make_observer(out) as observer:
        result = train_run(
            spec,
            args.engine or _default_engine(),
            observer,
            runs_dir=args.runs_dir,
            run_name=args.run,
            resume=args.resume,
            finish=not args.no_finish,
        )
    _print_end(out, args, result)
    return CommandResult(_document(result), result.exit_status)


def _default_engine() -> str:
    """The preferred engine that is installed."""
    names = available_engines()
    if not names:
        raise UserError(f"training needs an engine and none is installed; engines: {', '.join(ENGINE_PACKAGES)}")
    return names[0]


def _document(result: RunResult) -> dict[str, Any]:
    outcome, finished = result.outcome, result.finished
    return {
        "run": str(result.run.path),
        "status": outcome.status,
        "message": outcome.message,
        "steps": outcome.step,
        "train_s": outcome.elapsed_s,
        "train_nats": outcome.nats,
        "validation": asdict(outcome.validation) if outcome.validation else None,
        "best_validation": asdict(outcome.best_validation) if outcome.best_validation else None,
        "checkpoint": str(outcome.checkpoint) if outcome.checkpoint else None,
        "artifact": str(result.run.artifact_path) if finished else None,
        "packing": finished.packing.to_document() if finished else None,
        "problems": finished.problems if finished else [],
        "score": finished.score.to_dict() if finished else None,
    }


def _print_end(out: Console, args: argparse.Namespace, result: RunResult) -> None:
    """The last lines a user reads: the score, or why there is none and how to go on."""
    outcome = result.outcome
    if outcome.message:
        style = "red" if outcome.status == "failed" else "yellow"
        out.print(f"bytetwin: {outcome.message}", style=style, markup=False, soft_wrap=True)
    if outcome.status == "interrupted":
        out.print(f"resume with: {_resume_command(args, result)}", markup=False, soft_wrap=True)
    if result.finished is not None:
        _print_finished(out, result, result.finished)


def _print_finished(out: Console, result: RunResult, finished: Finished) -> None:
    packing = finished.packing
    print_score(out, finished.score)
    out.print(
        f"packing: {packing.unpacked_bpb:.4f} bits per byte before, {packing.packed_bpb:.4f} after "
        f"({packing.difference_bpb:+.4f}) on the validation sample",
        markup=False,
        soft_wrap=True,
    )
    files = result.run
    out.print(
        f"artifact {files.artifact_path}, score {files.score_path}, report {files.report_path}",
        markup=False,
        soft_wrap=True,
    )
    for problem in finished.problems:
        out.print(f"bytetwin: {problem}", style="red", markup=False, soft_wrap=True)


def _resume_command(args: argparse.Namespace, result: RunResult) -> str:
    """The command line that continues this run."""
    words = ["bytetwin", "train", args.spec]
    for override in args.overrides:
        words += ["--set", override]
    if args.engine:
        words += ["--engine", args.engine]
    if args.runs_dir != Path("runs"):
        words += ["--runs-dir", str(args.runs_dir)]
    return shlex.join([*words, "--run", result.run.name, "--resume"])
