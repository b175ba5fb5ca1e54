"""CaseOps (docs/techniques.md 2.6): text whose capital letters are sentinels before small ones, and back.

`decode(encode(text)) == text` for every text. A sentinel is a character of Unicode's private use area; one that a text
itself holds is escaped. Only the letters A to Z change, each for a letter of one byte.
"""

from __future__ import annotations

import re

TITLE, ALL_CAPS, CAP_NEXT, ESCAPE = SENTINELS = ("\ue001", "\ue002", "\ue003", "\ue004")
SENTINEL_BYTES = 3
"""UTF-8 bytes of a sentinel that stands for itself, after an escape."""

# A run of letters with a capital among them, from its start. The look behind keeps this linear in long runs.
_CHANGED = re.compile("(?<![A-Za-z])[a-z]*[A-Z][A-Za-z]*|[\ue001-\ue004]")
_CAPITAL = re.compile("[A-Z]")
_LETTERS = re.compile("[A-Za-z]*")
_SENTINEL = re.compile("([\ue001-\ue004])")


def encode(text: str) -> str:
    """The text with small letters only among A to Z, sentinels before those that were capitals."""
    return _CHANGED.sub(_marked, text)


def decode(text: str) -> str:
    """The text that `encode` was given. A sentinel with no letter to act on stands for nothing."""
    return CaseDecoder().decode(text)


class CaseDecoder:
    """Decodes a text that comes in pieces; no character is held back."""

    def __init__(self) -> None:
        self._pending = ""

    def decode(self, text: str) -> str:
        """The next piece of the text."""
        return "".join(map(self._part, filter(None, _SENTINEL.split(text))))

    def _part(self, part: str) -> str:
        """A sentinel, or text between sentinels; `_pending` is the sentinel that acts on what comes."""
        pending, is_sentinel = self._pending, part in SENTINELS
        self._pending = part if is_sentinel and pending != ESCAPE else ""
        if is_sentinel:
            return part if pending == ESCAPE else ""
        run = _LETTERS.match(part)
        letters = run.end() if run and pending != ESCAPE and pending else 0
        if pending != ALL_CAPS:
            letters = min(letters, 1)
        elif letters == len(part):
            self._pending = ALL_CAPS
        return part[:letters].upper() + part[letters:]


def _marked(match: re.Match[str]) -> str:
    word = match[0]
    if word in SENTINELS:
        return ESCAPE + word
    if len(word) > 1 and word.isupper():
        return ALL_CAPS + word.lower()
    first = TITLE + word[0].lower() if word[0].isupper() else word[0]
    return first + _CAPITAL.sub(lambda capital: CAP_NEXT + capital[0].lower(), word[1:])
