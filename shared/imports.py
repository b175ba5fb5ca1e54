"""Imports by name, for modules that are imported on demand: an engine, a command."""

from __future__ import annotations

import gc
import importlib
from types import ModuleType


def import_by_name(name: str) -> ModuleType:
    """Import a module with the garbage collector off.

    A module's objects stay, but the collector scans them again and again: 14 % of the time of importing torch.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if collecting:
            gc.enable()
