"""Whether this process runs a self-contained script."""

from __future__ import annotations

from pathlib import Path


def running_script() -> Path | None:
    """The self-contained script that this module was imported from (shared.script.boot); None if it has a file of its
    own."""
    script = getattr(__loader__, "script", None)
    return None if script is None else Path(script)
