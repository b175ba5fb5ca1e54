"""What every command is: a name, its arguments, and a function from arguments to one document."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from shared.engine.registry import ENGINES
from shared.spec import Spec, load_spec

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class CommandResult:
    """`document` is printed as JSON with --json, None if that was done already; `status` is the exit status:
    0 done, 1 a check said no."""

    document: dict[str, Any] | None = field(default_factory=dict)
    status: int = 0


class Command(Protocol):
    """A module of shared.cli that holds one command. Its name and help are in shared.cli.main."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> CommandResult:
        """Do it. Raises UserError for bad input; prose and progress go to `console()`."""


def console() -> Console:
    """The console for people: stderr, so that stdout can carry one JSON document."""
    # A command that prints no more than `spec` does need not wait for rich.
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """SPEC and --set, as every command that takes a spec reads them."""
    parser.add_argument("spec", metavar="SPEC", help="preset name or path to a .toml file")
    add_set_argument(parser)


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    """--set section.key=value."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="section.key=value",
        help="change one field of the spec; may be repeated",
    )


def spec_from_arguments(args: argparse.Namespace) -> Spec:
    """The resolved spec of `add_spec_arguments`."""
    return load_spec(args.spec, args.overrides)


def add_engine_argument(parser: argparse.ArgumentParser, *, oracle: bool = False) -> None:
    """--engine; with `oracle` the NumPy float64 oracle is a choice too."""
    choices = [*ENGINES, *(["numpy"] if oracle else [])]
    order = " before ".join(ENGINES)
    parser.add_argument("--engine", choices=choices, help=f"default: the first that is installed, {order}")
