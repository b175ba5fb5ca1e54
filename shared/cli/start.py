"""The `bytetwin` script: Ctrl-C is one line from the first moment on, also while the command line is imported."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


def main() -> int:
    """Run the command line of this process; returns the exit status."""
    with ending_in_one_line():
        from shared.cli.main import run_process
    return run_process()


@contextlib.contextmanager
def ending_in_one_line() -> Iterator[None]:
    """While this is open, for imports, Ctrl-C ends the process with one line."""
    # Where Ctrl-C is ignored, as in a job that a shell runs in the background, it stays so.
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, _end)
    yield
    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"bytetwin: interrupted\n")
    os._exit(128 + number)
