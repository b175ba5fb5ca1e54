"""`bytetwin generate`: text that continues a prompt, printed as it comes."""

from __future__ import annotations

import argparse
import sys

import bytetwin
from shared.cli.command import CommandResult, add_engine_argument, add_runs_dir_argument, console
from shared.cli.scoring import add_step_argument, default_engine, say_warnings
from shared.spec import spec_id

# Everything a terminal could take for a command, apart from tab and line feed.
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\ufffd")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("target", metavar="RUN|ARTIFACT", help="a run's name or folder, or a .btw file")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="text to continue; default: begin a document")
    parser.add_argument("--bytes", type=int, default=256, metavar="N", help="most bytes to generate; default 256")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 takes the likeliest byte; default 0.8"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="keep the likeliest bytes up to this probability; default 1",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="the same seed gives the same text on the same engine; default 0",
    )
    add_step_argument(parser)
    add_engine_argument(parser, oracle=True)
    add_runs_dir_argument(parser)


def run(args: argparse.Namespace) -> CommandResult:
    """Sample; the text goes to stdout as it comes, or into the document with --json."""
    target = bytetwin.load(args.target, step=args.step, runs_dir=args.runs_dir)
    say_warnings(console(), target)
    engine = args.engine or default_engine()
    prompt = args.prompt.encode("utf-8", errors="surrogateescape")
    text = bytetwin.generate(
        target,
        prompt,
        args.bytes,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        engine=engine,
    )
    shown = prompt.decode("utf-8", errors="replace")
    pieces: list[str] = []
    if not args.json:
        _print(shown)
    for piece in text:
        pieces.append(piece)
        if not args.json:
            _print(piece)
    if not args.json:
        _print("\n")
    document = {
        "prompt": shown,
        "text": "".join(pieces),
        "temperature": args.temperature,
        "top_p": args.top_p,
        "seed": args.seed,
        "engine": engine,
        "spec_id": spec_id(target.spec),
    }
    return CommandResult(document)


def _print(text: str) -> None:
    """Write text to stdout at once; a terminal is spared control characters, a file gets the text as it is."""
    sys.stdout.write(text.translate(_CONTROL) if sys.stdout.isatty() else text)
    sys.stdout.flush()
