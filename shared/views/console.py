"""Chooses the view of a run."""

from __future__ import annotations

from rich.console import Console

from shared.runs.observer import Observer
from shared.views.live import LiveObserver
from shared.views.plain import PlainObserver


def make_observer(console: Console, shared_by: str = "") -> Observer:
    """The live view on a terminal that can redraw and knows braille, plain lines anywhere else: also where several runs
    share the console, and the one called `shared_by` puts its name before each line."""
    can_redraw = console.is_terminal and not console.is_dumb_terminal
    if can_redraw and not shared_by and console.encoding.lower().startswith("utf"):
        return LiveObserver(console)
    return PlainObserver(console, f"{shared_by}: " if shared_by else "")
