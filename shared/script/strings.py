"""Strings and numbers of a self-contained script, in the quotes that need the fewest escapes.

An expression in an f-string of Python 3.11 holds neither a backslash nor the quotes of the f-string.
"""

from __future__ import annotations

from collections.abc import Sequence

QUOTES = ('"', "'", '"""', "'''")
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class CannotQuoteError(ValueError):
    """A string that no quotes fit: an f-string in an f-string in an f-string, or a backslash in an expression."""


def constant(value: object, quotes: Sequence[str]) -> str:
    """The text of a constant; a string has one of `quotes`. Raises CannotQuoteError if none fits."""
    if isinstance(value, float | complex):
        return repr(value).replace("inf", "1e309")
    if isinstance(value, bytes):
        text = repr(value)
        if text[1] not in quotes or ("\\" in text and tuple(quotes) != QUOTES):
            raise CannotQuoteError(text)
        return text
    if value is Ellipsis:
        return "..."
    return _string(value, quotes) if isinstance(value, str) else repr(value)


def _string(value: str, quotes: Sequence[str]) -> str:
    """A string in the quotes that need the fewest escapes."""
    texts = [quote + escaped(value, quote) + quote for quote in quotes]
    # An expression in an f-string holds no backslash.
    usable = [text for text in texts if tuple(quotes) == QUOTES or "\\" not in text]
    if not usable:
        raise CannotQuoteError(value)
    return min(usable, key=len)


def escaped(text: str, quote: str) -> str:
    """Text as it stands between these quotes."""
    written = []
    for character in text:
        if character in ESCAPES:
            written.append(ESCAPES[character])
        elif character == quote[0]:
            written.append(f"\\{character}")
        elif character < " " or character == "\x7f":
            written.append(f"\\x{ord(character):02x}")
        elif "\ud800" <= character <= "\udfff":
            written.append(f"\\u{ord(character):04x}")
        else:
            written.append(character)
    return "".join(written)
