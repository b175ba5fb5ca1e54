"""Imports by name, of what is not imported before it is asked for: an engine, a command."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def import_by_name(name: str) -> ModuleType:
    """Import a module of the house, with the garbage collector off.

    What a module makes stays, but the collector looks through it again and again: 14 % of the time that torch takes.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if collecting:
            gc.enable()
