"""Keeps a Mac awake while it trains: on battery macOS sleeps after a few minutes without a key, whatever the load."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep the machine, not its display, from sleeping while this is entered and this process lives; on a Mac alone.

    A dark display is wanted: macOS ends commands of a GPU that draws a screen too slowly.
    """
    if sys.platform != "darwin":
        yield
        return
    command = ["caffeinate", "-i", "-m", "-w", str(os.getpid())]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError:
        # Part of every macOS; without it training is the same.
        yield
        return
    try:
        yield
    finally:
        process.terminate()
        process.wait()
