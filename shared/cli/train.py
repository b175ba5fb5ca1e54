"""`bytetwin train`: trains, packs and scores, in a run directory that can be resumed."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

import bytetwin
from shared.cli.command import (
    RUNS_DIR,
    CommandResult,
    add_engine_argument,
    add_runs_dir_argument,
    add_spec_arguments,
    console,
    option_words,
    say,
    say_error,
    say_idle,
)
from shared.cli.score import print_score
from shared.cli.scoring import say_prose
from shared.engine.package import default_training_engine, engine_package, keep_compiled
from shared.engine.ranks import is_launched
from shared.engine.registry import ENGINES
from shared.errors import UserError
from shared.runs.run_directory import RunDirectory
from shared.sinks.kinds import KINDS, shown_by
from shared.training.awake import awake
from shared.training.finish import Finished
from shared.training.profiling import Profile, ProfileRequest, print_profile
from shared.training.run import RunResult, earlier_result, follow_run
from shared.training.run_data import finished_with
from shared.views.console import make_observer
from shared.views.report.phases import phases_text


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_spec_arguments(parser)
    add_engine_argument(parser)
    parser.add_argument("--run", metavar="NAME", help="name of the run; default SPEC-ENGINE-N")
    parser.add_argument("--resume", action="store_true", help="resume the run from its last checkpoint, if it has one")
    add_runs_dir_argument(parser)
    parser.add_argument("--no-finish", action="store_true", help="stop after training: do not pack, do not score")
    parser.add_argument(
        "--profile", type=int, metavar="N", help="trace N steps into the run's trace.json and print the largest costs"
    )
    parser.add_argument("--ranks", metavar="N", help="N processes of torch on this machine; `gpus`: one per GPU")
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        choices=list(KINDS),
        help="also send the numbers of metrics.jsonl, the spec and the artifact there; may be repeated. Local or "
        "offline unless its own environment variables say otherwise",
    )
    parser.add_argument("--let-sleep", action="store_true", help="on a Mac: do not keep it awake while it trains")
    parser.add_argument("--port", type=int, metavar="P", help="rendezvous port; default: any free port")


def run(args: argparse.Namespace) -> CommandResult:
    """Train; status 1 if training broke down or a check failed, 128 + signal number if it was stopped."""
    spec = bytetwin.load_spec(args.spec, args.overrides)
    if args.resume and args.run and not args.no_finish and not is_launched():
        done = finished_with(RunDirectory(args.runs_dir / args.run), spec)
        if done is not None:
            return _end(console(), args, earlier_result(done))
    if args.ranks is not None and not is_launched():
        return _launch(args)
    engine_name = args.engine or default_training_engine()
    keep_compiled(engine_name, args.runs_dir)
    ranks = engine_package(engine_name).connect()
    if ranks.rank > 0:
        follow_run(spec, engine_name, ranks)
        return CommandResult(None)
    out = console()
    say_idle(spec)
    profiles: list[Profile] = []
    with contextlib.nullcontext() if args.let_sleep else awake():
        result = bytetwin.train(
            spec,
            engine=engine_name,
            run=args.run,
            runs_dir=args.runs_dir,
            resume=args.resume,
            finish=not args.no_finish,
            log=args.log,
            observer=make_observer(out),
            profile=ProfileRequest(args.profile, profiles.append) if args.profile is not None else None,
            ranks=ranks,
            resume_command=lambda name: _resume_command(args, name),
        )
    for profile in profiles:
        print_profile(out, profile)
    if args.profile and not profiles:
        out.print("no step was traced: the run had too few", style="yellow")
    return _end(out, args, result, profiles)


def _launch(args: argparse.Namespace) -> CommandResult:
    """Train with several processes; rank 0 prints what this command would, its document too."""
    able = next(name for name, engine in ENGINES.items() if not engine.launcher)
    name = args.engine or able
    if launcher := ENGINES[name].launcher:
        raise UserError(f"--ranks starts processes of the {able} engine; for engine {name} use {launcher}")
    launch = engine_package(name).launch
    assert launch is not None, name
    return CommandResult(None, launch(_words(args, args.run, args.resume), args.ranks, args.port))


def _document(result: RunResult, profiles: Sequence[Profile]) -> dict[str, Any]:
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
        "phase_s": dict(result.phase_s),
        **({"profile": profiles[-1].to_document()} if profiles else {}),
    }


def _end(out: Console, args: argparse.Namespace, result: RunResult, profiles: Sequence[Profile] = ()) -> CommandResult:
    """Print the last lines a user reads: the score, or why there is none and how to resume."""
    outcome = result.outcome
    if outcome.message:
        say(out, f"bytetwin: {outcome.message}", "red" if outcome.status == "failed" else "yellow")
    if outcome.status == "interrupted" or outcome.device_failed:
        say(out, f"resume with: {_resume_command(args, result.run.name)}")
    if result.finished is not None:
        _print_finished(out, result.run, result.finished)
    for kind in args.log:
        say(out, f"{kind}: {shown_by(kind, result.run)}")
    if result.phase_s:
        say_prose(out, f"time: {phases_text(result.phase_s)}")
    return CommandResult(_document(result, profiles), result.exit_status)


def _print_finished(out: Console, run: RunDirectory, finished: Finished) -> None:
    packing = finished.packing
    print_score(out, finished.score)
    say_prose(
        out,
        f"packing: {packing.unpacked_bpb:.4f} bits per byte before, {packing.packed_bpb:.4f} after "
        f"({round(packing.difference_bpb, 4) + 0.0:+.4f}) on the validation sample",
    )
    say(out, f"artifact {run.artifact_path}, score {run.score_path}, report {run.report_path}")
    for problem in finished.problems:
        say_error(out, problem)


def _resume_command(args: argparse.Namespace, run_name: str) -> str:
    return shlex.join(["bytetwin", "train", *_words(args, run_name, resume=True)])


def _words(args: argparse.Namespace, run_name: str | None, resume: bool) -> list[str]:
    """The command line after `train` that does what these arguments say."""
    options = {
        "--set": args.overrides,
        "--engine": args.engine,
        "--runs-dir": None if args.runs_dir == RUNS_DIR else args.runs_dir,
        "--ranks": args.ranks,
        "--port": args.port or None,
        "--log": args.log,
        "--no-finish": args.no_finish,
        "--profile": args.profile or None,
        "--let-sleep": args.let_sleep,
        "--json": args.json,
        "--run": run_name,
        "--resume": resume,
    }
    return [args.spec, *option_words(options)]
