"""The frame of every command: its arguments, and a function from arguments to one document."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shared.engine.registry import ENGINES
from shared.errors import one_line
from shared.files import check_regular, write_atomically
from shared.spec import Spec, load_spec
from shared.spec.idle import idle_notes

if TYPE_CHECKING:
    from rich.console import Console

    from shared.cli.screen import Screen

RUNS_DIR = Path("runs")


@dataclass(frozen=True)
class CommandResult:
    """`document` is printed as JSON with --json, None if that was done already; `status` is the exit status:
    0 done, 1 a check failed."""

    document: dict[str, Any] | None = field(default_factory=dict)
    status: int = 0


class Command(Protocol):
    """A module of shared.cli with one command. Its name and help are in shared.cli.main."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> CommandResult:
        """Run the command. Raises UserError for bad input; prose and progress go to `console()`."""


def console() -> Screen:
    """The console for people: stderr, so that stdout can carry one JSON document."""
    # `spec` prints on stdout alone and need not wait for rich.
    from shared.cli.screen import Screen

    return Screen()


def result_console(args: argparse.Namespace) -> Screen:
    """The console for a table that is the result of a command: stdout, unless --json puts a document there."""
    from shared.cli.screen import Screen

    return Screen(stderr=args.json)


def say(out: Console, line: str, style: str | None = None) -> None:
    """Print a line that only the terminal wraps, so that a command or path in it can be copied."""
    out.print(line, style=style, soft_wrap=True)


def say_error(out: Console, message: str) -> None:
    """Print why something failed, in red."""
    say(out, one_line(f"bytetwin: {message}"), "red")


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """SPEC and --set, as every command that takes a spec reads them."""
    parser.add_argument("spec", metavar="SPEC", help="preset name or path to a .toml file")
    add_set_argument(parser)


def add_set_argument(
    parser: argparse.ArgumentParser, purpose: str = "change one field of the spec", section: str = "section"
) -> None:
    """--set section.key=value."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar=f"{section}.key=value",
        help=f"{purpose}; may be repeated",
    )


def spec_from_arguments(args: argparse.Namespace) -> Spec:
    """The resolved spec of `add_spec_arguments`; says what in it has no effect."""
    spec = load_spec(args.spec, args.overrides)
    say_idle(spec)
    return spec


def say_idle(spec: Spec) -> None:
    """Say which fields of a spec were set in vain, if any."""
    if notes := idle_notes(spec):
        out = console()
        for note in notes:
            say(out, note, "yellow")


def add_engine_argument(parser: argparse.ArgumentParser, *, oracle: bool = False, unless: str = "") -> None:
    """--engine; with `oracle` the NumPy float64 oracle is a choice too. `unless` says what comes before the default."""
    choices = [*ENGINES, *(["numpy"] if oracle else [])]
    order = " before ".join(ENGINES)
    parser.add_argument("--engine", choices=choices, help=f"default: {unless}the first that is installed, {order}")


def add_runs_dir_argument(parser: argparse.ArgumentParser) -> None:
    """--runs-dir."""
    parser.add_argument("--runs-dir", type=_folder, default=RUNS_DIR, metavar="DIR", help="default %(default)s")


def runs_dir_words(args: argparse.Namespace) -> list[str]:
    """--runs-dir as it stands on a command line, if it is not the default."""
    return option_words({"--runs-dir": None if args.runs_dir == RUNS_DIR else args.runs_dir})


def add_output_argument(parser: argparse.ArgumentParser, purpose: str, default: Path | None = None) -> None:
    """--output FILE, which could be written: that is known before hours are spent."""
    parser.add_argument("--output", type=_output_file, default=default, metavar="FILE", help=purpose)


def _output_file(word: str) -> Path:
    path = Path(word)
    if not path.parent.is_dir():
        wrong = f"{path.parent} is not a folder" if path.parent.exists() else f"the folder {path.parent} does not exist"
        raise argparse.ArgumentTypeError(f"{word}: {wrong}")
    try:
        check_regular(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise argparse.ArgumentTypeError(f"{word}: {reason}; name a file") from None
    # A file is replaced by another of its name. For a link that would be the link, for /dev/stdout the device.
    return path.resolve() if path.is_symlink() else path


def _folder(word: str) -> Path:
    path = Path(word)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{word}: not a folder")
    return path


def number_type(kind: type[int] | type[float], holds: Callable[[float], bool], allowed: str) -> Callable[[str], Any]:
    """A type for argparse: an int or float for which `holds` is true; `allowed` describes it in the error."""

    def parse(text: str) -> int | float:
        with contextlib.suppress(ValueError):
            if holds(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text}: must be {allowed}")

    return parse


positive = number_type(int, lambda value: value >= 1, "an integer of at least 1")


def add_confidence_argument(parser: argparse.ArgumentParser, default: float) -> None:
    """--confidence LEVEL."""
    level = number_type(float, lambda value: 0.0 < value < 1.0, "a number between 0 and 1")
    parser.add_argument(
        "--confidence", type=level, default=default, metavar="LEVEL", help="of the intervals; default %(default)s"
    )


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options as they stand on a command line: a list repeats its option; None, False and [] give nothing."""
    pairs = [(name, one) for name, value in options.items() for one in (value if isinstance(value, list) else [value])]
    given = [(name, value) for name, value in pairs if value is not None and value is not False]
    return [word for name, value in given for word in ([name] if value is True else [name, str(value)])]


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())
