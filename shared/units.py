"""Figures as text: decimal units, three digits."""

from __future__ import annotations

import math


def bits_per_byte(nats: float, bytes_per_symbol: float) -> float:
    """Mean nats per symbol in bits per byte: the unit of scores, comparable between bytes and tokens."""
    return nats / math.log(2.0) / bytes_per_symbol


def format_bytes(count: float) -> str:
    """`812 MB`, `45.1 kB`."""
    return f"{_scaled(count)}B"


def format_count(count: float) -> str:
    """`1.23 M`."""
    return _scaled(count).rstrip()


def counted(number: int, unit: str) -> str:
    """`1 symbol`, `5,000 symbols`."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def format_clock(seconds: float) -> str:
    """`0:42`, `12:05` or `1:02:03`: a clock on the screen."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_duration(seconds: float) -> str:
    """A measured duration: `364 ms`, `2.60 s`, `42.0 s`, from a minute on as a clock."""
    if seconds >= 59.95:
        return format_clock(seconds)
    value, unit = (seconds, "s") if seconds >= 0.9995 else (1000.0 * seconds, "ms")
    return f"{value:.{_digits(value)}f} {unit}"


def _scaled(value: float) -> str:
    """Three digits and a unit, with a space between."""
    units, index = ("", "k", "M", "G", "T"), 0
    while index + 1 < len(units) and round(value, 0) >= 1000:
        value, index = value / 1000, index + 1
    return f"{value:,.{_digits(value) if index else 0}f} {units[index]}"


def _digits(value: float) -> int:
    """Decimals of a number that is shown in three digits."""
    return 0 if value >= 99.95 else 1 if value >= 9.995 else 2
