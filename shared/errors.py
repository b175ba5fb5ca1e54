"""The errors a user can cause. The command line prints one line for each and exits with status 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# What a terminal takes for a command, turns the reading direction, or cannot be encoded; tab and line feed are neither.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MOST_LETTERS = 500


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what is allowed."""


class SpecError(UserError):
    """A spec file, preset name or `--set` override that cannot be used."""


class DataError(UserError):
    """A dataset, shard or text file that is missing, damaged or empty."""


class ArtifactError(UserError):
    """A `.btw` file that is damaged, contradicts itself or was made for something else."""


class RunError(UserError):
    """A run directory or checkpoint that cannot be used as asked."""


class RanksError(Exception):
    """Another process of the same run is gone. Not an error of the input: exit status 1, and the run can be resumed."""


class DeviceError(Exception):
    """The device has failed, and what it computes from then on cannot be used. Not an error of the input: exit status
    1. The message is one line."""


def visible(text: str) -> str:
    """Text with control characters as escapes such as `\\x1b`."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(message: str) -> str:
    """A message as one line of at most MOST_LETTERS characters; a longer one loses its middle."""
    line = visible(re.sub(r"\s*[\t-\r]\s*", " ", message.strip()))
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 155]} ... {line[-150:]}"


def problem_text(message: str) -> str:
    """What pydantic says of a value, in the words of our own messages: `must be ...`."""
    message = message.replace("Input should be", "must be").replace("a valid boolean", "true or false")
    message = (
        message.replace("a valid tuple", "a list").replace("a valid integer", "an integer").replace("a valid ", "a ")
    )
    return message[:1].lower() + message[1:]


def nearest(word: str, choices: Iterable[str]) -> str:
    """`, did you mean 'smoke'?` with the choice that is most like the word; empty if none is."""
    matches = difflib.get_close_matches(word[:100], list(choices), n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else ""
