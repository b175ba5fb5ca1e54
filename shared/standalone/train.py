"""A script that trains the spec in it, packs the model and scores what was packed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from data.datasets import bind_tokenizer
from shared.engine.package import engine_package
from shared.engine.ranks import is_launched, stop_with_parent
from shared.errors import SpecError
from shared.parsing import parse_toml
from shared.spec import Spec, load_spec, stored_spec, with_overrides
from shared.standalone import score
from shared.standalone.program import guarded, say
from shared.training.run import follow_run, train_run
from shared.views.plain import PlainObserver

if TYPE_CHECKING:
    from rich.console import Console


def main(words: Sequence[str], engine: str, spec: str) -> int:
    """Train or score as the command line says on `engine`; `spec` is the TOML of what is trained by default."""
    parser = argparse.ArgumentParser(description="Train a language model, pack it and score what was packed.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("score", add_help=False, help="score a packed model")
    train = commands.add_parser("train", help="train, pack and score")
    train.add_argument("spec", nargs="?", metavar="SPEC.toml", help="default: the spec in this file")
    train.add_argument("--set", dest="overrides", action="append", default=[], metavar="section.key=value")
    train.add_argument("--runs-dir", type=Path, default=Path("runs"), metavar="DIR", help="default %(default)s")
    # Not --run, which torchrun takes for its own --run-path.
    train.add_argument("--name", metavar="NAME", help="name of the run; default SPEC-ENGINE-N")
    if words[:1] == ["score"]:
        return score.main(words[1:], engine)
    args = parser.parse_args(words)
    if is_launched():
        # Before the framework is imported, which takes seconds in which the launcher may be killed.
        stop_with_parent()
    status = guarded(lambda: _train(args, engine, spec))
    if is_launched():
        # Taking a process group apart whose other ranks are gone can hang or print a trace.
        sys.stdout.flush()
        os._exit(status)
    return status


def _train(args: argparse.Namespace, engine: str, text: str) -> int:
    """Train in a new run directory and print the score document."""
    spec = bind_tokenizer(_spec(args, text))
    ranks = engine_package(engine).connect()
    if ranks.rank > 0:
        follow_run(spec, engine, ranks)
        return 0
    with PlainObserver(cast("Console", _Lines())) as observer:
        result = train_run(spec, engine, observer, runs_dir=args.runs_dir, run_name=args.name, ranks=ranks)
    if result.outcome.message:
        say(result.outcome.message)
    if result.finished is not None:
        for problem in result.finished.problems:
            say(problem)
        print(json.dumps(result.finished.score.to_dict(), indent=2), flush=True)
    return result.exit_status


def _spec(args: argparse.Namespace, text: str) -> Spec:
    if args.spec is not None:
        if not args.spec.endswith(".toml"):
            raise SpecError(f"{args.spec}: not a .toml file; without one the spec in this file is trained")
        return load_spec(args.spec, args.overrides)
    return with_overrides(stored_spec(parse_toml(text), "the spec in this file"), args.overrides)


class _Lines:
    """As much of a console as PlainObserver needs, without rich."""

    file: IO[str] = sys.stderr

    def print(self, line: str, **_: object) -> None:
        say(line)
