"""For files and pipes: how long what is being done has lasted, while nothing else is said."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable

from rich.console import Console

from shared.units import format_clock

# Nothing is said more often than this, and of a stage that takes less, nothing.
PROGRESS_EVERY_S = 10.0


class StageClock:
    """Says every so often how long a stage has lasted, until it stops or the next stage starts."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None
        # Held while the clock ticks, starts and stops: a tick between a stop and its end would start another timer.
        self._ticking = threading.RLock()

    def start(self, say: Callable[[str], None]) -> None:
        """A stage begins; `say` gets a time such as 0:10, in another thread."""
        with self._ticking:
            self.stop()
            self._wait(say, time.monotonic())

    def stop(self) -> None:
        """The stage is over."""
        with self._ticking:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _wait(self, say: Callable[[str], None], start_s: float) -> None:
        def tick() -> None:
            with self._ticking:
                if self._timer is timer:
                    say(format_clock(time.monotonic() - start_s))
                    self._wait(say, start_s)

        timer = self._timer = threading.Timer(PROGRESS_EVERY_S, tick)
        timer.daemon = True
        timer.start()


def notify(console: Console, text: str) -> None:
    """Write past the console, straight to its file descriptor: another thread may be printing."""
    with contextlib.suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
        os.write(console.file.fileno(), text.encode())
