"""`bytetwin`, called in this process, and what it printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from shared.cli.main import main


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What --json made it print."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def told(self) -> str:
        """What it said on stderr, without the line ends of a narrow terminal."""
        return " ".join(self.err.split())


class CommandLine:
    """The fixture `cli`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: object) -> Done:
        self.capsys.readouterr()
        status = main([str(word) for word in words])
        return Done(status, *self.capsys.readouterr())

    def document(self, *words: object) -> dict[str, Any]:
        """The document of a command that must end well."""
        done = self(*words, "--json")
        assert done.status == 0, done.err
        return done.document

    def refusal(self, *words: object) -> str:
        """The one line of a command that must end with status 2."""
        done = self(*words)
        assert done.status == 2 and done.out == "" and done.err.startswith("bytetwin: "), done
        assert done.err.count("\n") == 1, done.err
        return done.err


def set_words(*overrides: str) -> list[str]:
    """`--set` for each."""
    return [word for override in overrides for word in ("--set", override)]
