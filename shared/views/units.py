"""Figures in words: decimal units, few digits."""

from __future__ import annotations

import math


def bits_per_byte(nats: float, bytes_per_symbol: float) -> float:
    """Mean nats per symbol in bits per byte: the unit of scores, comparable between bytes and tokens."""
    return nats / math.log(2.0) / bytes_per_symbol


def in_bytes(count: float) -> str:
    """Bytes with a decimal unit: `812 MB`, `45.1 kB`."""
    return f"{_scaled(count, ('', 'k', 'M', 'G', 'T'))}B"


def in_count(count: float) -> str:
    """A count with a decimal unit: `1.23 M`."""
    return _scaled(count, ("", "k", "M", "G", "T")).rstrip()


def in_time(seconds: float) -> str:
    """`0:42`, `12:05` or `1:02:03`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def in_step_time(seconds: float) -> str:
    """Time of one step: `364 ms` or `2.60 s`."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1.0 else f"{seconds:.2f} s"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """Three significant digits and a unit, with a space between."""
    index = 0
    while index + 1 < len(units) and round(value, 0) >= 1000:
        value, index = value / 1000, index + 1
    digits = 0 if index == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {units[index]}"
