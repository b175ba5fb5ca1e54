"""`bytetwin COMMAND`: finds the command, runs it, turns errors into one line and an exit status.

Exit status 0: done. 1: a check failed. 2: bad input, reported in one line on stderr. 130: interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from shared import __version__
from shared.engine.ranks import let_rank_0_speak, own_rank
from shared.errors import DeviceError, RanksError, UserError, nearest
from shared.imports import import_by_name
from shared.signals import end_soon_after_interrupt

if TYPE_CHECKING:
    from shared.cli.command import Command

# What `bytetwin --help` prints. A command's module is imported when it is asked for: all of them take a second.
COMMANDS = {
    "train": "train a spec, pack the weights and score the artifact; exit status 130 or 143 after a signal",
    "parity": "prove that NumPy, MLX and torch compute the same model, gradients, updates, loss curve and artifact",
    "preflight": "go or no-go before spending: parity, causality, sizes, memory, speed, cost, data; status 1 if no-go",
    "pack": "quantise and compress the weights of a run into its artifact",
    "inspect": "where the bytes and the loss of a run or artifact sit, tensor by tensor; --sizes: what fits the budget",
    "score": (
        "bits per byte of a run or artifact on held-out text, under a stated protocol. The score of a finished "
        "run's artifact on all its text, with its stride and engine, replaces score.json of the run; --output "
        "keeps any other"
    ),
    "audit": "check a score for leaks and accounting errors; status 1 if a check fails",
    "prove": "compress held-out text with an artifact, decompress it, compare: the score as the size of a file",
    "compress": "code a file with an artifact as its model",
    "decompress": "give back the file that was coded with `compress`",
    "generate": "sample text from a run or an artifact",
    "export": "weights for others: a folder for safetensors, transformers or MLX, with a model card; --push uploads it",
    "sweep": "train specs over seeds and compare them; rerun to resume",
    "compare": "compare finished runs with a baseline: mean, deviation, paired difference and its interval over seeds",
    "report": "one page for one run or many, with no need of a network: curves, differences, what each model does",
    "watch": "see a running or finished run from another terminal or over ssh; several runs as rows",
    "soup": "mix the weights of several runs of one spec into an artifact and score it",
    "plan": "from bytes, minutes and GPUs to a spec: which shape fits, and what measured runs say that it will score",
    "fit": "fit bpb = c + a T^-alpha to validations of runs at constant learning rate; preflight finds the JSON itself",
    "data": "list, build, import, download and verify datasets",
    "tokenizer": "train SentencePiece tokenizers, list them, encode datasets with them",
    "prepare": "download, and encode, the datasets of a spec that are not on disk yet",
    "record": "write a record folder of finished runs: README, submission.json, each seed's spec, artifact and score",
    "spec": "print the resolved spec with parameter counts by group, the presets, or the JSON Schema",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """argparse's own, with the nearest choice."""
        if action.choices is not None and value not in action.choices:
            name, choices = action.metavar or action.option_strings[0], list(action.choices)
            self.error(f"{name} {value!r}: no such choice{nearest(str(value), choices)}; choices: {', '.join(choices)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal cannot encode it shows as an escape, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    status = 0
    try:
        parser, command = _parser(words)
        args = parser.parse_args(words)
        assert command is not None, "the parser ends the process where no command is named"
        result = command.run(args)
        status = result.status
        if args.json and result.document is not None:
            print(json.dumps(result.document, indent=2, sort_keys=True), flush=True)
        return status
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does.
        from shared.cli.silence import silence

        silence(sys.stdout)
        return status
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        # One is enough: another would end the words about it in a trace.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return _fail("interrupted", status=130)
        finally:
            signal.signal(signal.SIGINT, before)
    except (RanksError, DeviceError) as error:
        return _fail(str(error), status=1)
    except (OSError, MemoryError, RecursionError, UnicodeError) as error:
        return _fail(_in_words(error))
    except Exception as error:
        if own_rank() == 0:
            raise
        return _fail(f"rank {own_rank()}: {type(error).__name__}: {error}", status=1)


def run_process(argv: Sequence[str] | None = None) -> int:
    """`main`, where it is all that the process does: after Ctrl-C no library keeps it for long."""
    end_soon_after_interrupt("" if own_rank() else "bytetwin: interrupted\n")
    return main(argv)


def _parser(words: Sequence[str]) -> tuple[argparse.ArgumentParser, Command | None]:
    """The parser of a command line, with the arguments of the command named in it, and that command."""
    parser = Parser(
        prog="bytetwin",
        description="Train small language models to a byte budget: the same experiment on MLX and on CUDA.",
    )
    parser.add_argument("--version", action="version", version=f"bytetwin {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # No option before the command takes a value.
    named = next((word for word in words if not word.startswith("-")), None)
    command: Command | None = None
    for name, purpose in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=purpose, description=purpose)
        if name == named:
            command = cast("Command", import_by_name(f"shared.cli.{name}"))
            subparser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
            command.configure(subparser)
    return parser, command


def _in_words(error: Exception) -> str:
    """What an error of the system means."""
    if isinstance(error, OSError):
        return f"{error.filename or 'file system'}: {(error.strerror or str(error)).lower()}"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply"
    return f"{'not enough memory' if isinstance(error, MemoryError) else 'not UTF-8 text'}: {error}".removesuffix(": ")


def _fail(message: str, status: int = 2) -> int:
    # Here, because rich is not needed where nothing fails.
    from shared.cli.command import console, say_error

    let_rank_0_speak()
    say_error(console(), message)
    return status


if __name__ == "__main__":
    sys.exit(run_process())
