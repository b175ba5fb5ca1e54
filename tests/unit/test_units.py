"""Figures as text."""

from __future__ import annotations

from shared.units import counted


def test_one_is_no_plural() -> None:
    assert [counted(number, "symbol") for number in (0, 1, 5000)] == ["0 symbols", "1 symbol", "5,000 symbols"]
