"""`bytetwin COMMAND`: finds the command, runs it, turns errors into one line and an exit status.

Exit status 0: done. 1: a check said no. 2: bad input, told in one line on stderr. 130: interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import sys
from collections.abc import Sequence

from shared.cli.command import Command, CommandResult, console
from shared.engine.ranks import let_rank_0_speak, own_rank
from shared.errors import RanksError, UserError

COMMANDS = (
    "train",
    "parity",
    "preflight",
    "pack",
    "score",
    "audit",
    "generate",
    "sweep",
    "compare",
    "soup",
    "fit",
    "data",
    "tokenizer",
    "prepare",
    "record",
    "spec",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    parser, commands = _parser()
    args = parser.parse_args(argv)
    try:
        result = commands[args.command].run(args)
        if args.json and result.document is not None:
            print(json.dumps(result.document, indent=2, sort_keys=True), flush=True)
        return result.status
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does. What is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted", status=130)
    except RanksError as error:
        return _fail(str(error), status=1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOENT):
            raise
        return _fail(f"{error.filename or 'file system'}: {(error.strerror or str(error)).lower()}")
    except Exception as error:
        if own_rank() == 0:
            raise
        return _fail(f"rank {own_rank()}: {type(error).__name__}: {error}", status=1)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Command]]:
    parser = argparse.ArgumentParser(
        prog="bytetwin",
        description="Train small language models to a byte budget: the same experiment on MLX and on CUDA.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands: dict[str, Command] = {}
    for name in COMMANDS:
        command: Command = importlib.import_module(f"shared.cli.{name}")
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        subparser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        command.configure(subparser)
        commands[name] = command
    return parser, commands


def _fail(message: str, status: int = 2) -> int:
    let_rank_0_speak()
    console().print(f"bytetwin: {message}", style="red", markup=False, soft_wrap=True)
    return status


__all__ = ["Command", "CommandResult", "main"]

if __name__ == "__main__":
    sys.exit(main())
