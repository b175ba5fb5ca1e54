"""Whether this process runs a self-contained script."""

from __future__ import annotations

from pathlib import Path

from shared import script


def running_script() -> Path | None:
    """The self-contained script that this module was imported from (shared.script.boot); None if it has a file of its
    own."""
    path = getattr(script.__loader__, "script", None)
    return None if path is None else Path(path)
