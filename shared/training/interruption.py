"""SIGINT, SIGTERM and SIGHUP: the first asks the run to stop after the current step, the second ends the process at
once.

A thread hears them (shared.signals), because a handler of Python does not run before a long step is over.
SIGTERM announces that the machine will be taken away, so it comes with a deadline: a process that is still busy then
(a collective waits for a rank that is gone) ends at once. All files are written atomically, so that damages nothing.
SIGHUP says that the terminal is gone and is taken for SIGTERM, except that it is never the second signal, because some
send both at once; where it is ignored, as under nohup, it stays so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from shared.engine.protocol import NonFiniteError
from shared.errors import DeviceError, UserError
from shared.signals import BRIEF_GRACE_S, end_process, heard

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Spot machines give 30 s or more between the notice and the end.
GRACE_S = 20.0
ENDED = "ended at once; files saved before are intact"


class StopRequested(Exception):
    """Raised at the next safe point after a stop was asked for."""


class Interruption:
    """While entered, remembers the first signal instead of dying of it; the second writes `last_words` to stderr and
    exits with 128 + its number. `notify` is called once, at the first signal, in a thread of its own. If `grace_s`
    seconds after a SIGTERM or SIGHUP it is still entered, the process exits as after a second one, with a line on
    stderr unless `quiet` (one rank of several is enough to say it); after Ctrl-C it may take its time."""

    def __init__(
        self, notify: Callable[[], None] = lambda: None, grace_s: float = GRACE_S, *, quiet: bool = False
    ) -> None:
        self.notify, self.grace_s, self.quiet = notify, grace_s, quiet
        self.signal_number: int | None = None
        self.last_words = ""
        self._previous: dict[int, Any] = {}
        self._hearing = contextlib.ExitStack()
        # Signals but for SIGHUP that have been heard.
        self._seen = 0
        self._deadline: threading.Timer | None = None
        self._brief = False
        # Taken by whoever comes first: a signal, a request of another process, or the end.
        self._first = threading.Lock()

    @property
    def exit_status(self) -> int:
        """128 + signal number, as a shell reports it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        assert self.signal_number is not None
        return 128 + self.signal_number

    def check(self) -> None:
        """Raise StopRequested if a stop was asked for."""
        if self.signal_number is not None:
            raise StopRequested

    def request(self, number: int) -> None:
        """Ask for a stop as a first signal with this number does. Changes nothing after a signal or another request,
        and a signal that follows is still the first. May be called in any thread."""
        if not self._first.acquire(blocking=False):
            return
        self._remember(number, None)
        if self._brief or number in (signal.SIGTERM, signal.SIGHUP):
            grace_s = min(self.grace_s, BRIEF_GRACE_S) if self._brief else self.grace_s
            self._deadline = threading.Timer(grace_s, self._give_up, [grace_s])
            self._deadline.daemon = True
            self._deadline.start()
        self.notify()

    @contextlib.contextmanager
    def nothing_to_save(self) -> Iterator[None]:
        """Give every signal, Ctrl-C too, a short deadline: what runs now may not come back to Python for minutes, as
        compilers do not, and nothing is lost with it. Raises StopRequested after a signal."""
        self.check()
        self._brief = True
        try:
            yield
        finally:
            self._brief = False
        self.check()

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """Turn an error that comes after a signal into StopRequested.

        Ctrl-C reaches every process of the terminal, so it also ends a compiler that an engine has started,
        and the engine then fails. That is not an error to report. Errors with a meaning of their own pass.
        """
        try:
            yield
        except (StopRequested, UserError, NonFiniteError, DeviceError):
            raise
        except Exception as error:
            if self.signal_number is None:
                raise
            raise StopRequested from error

    def __enter__(self) -> Interruption:
        # Python allows handlers in the main thread only; elsewhere signals keep their effect.
        if threading.current_thread() is threading.main_thread():
            self._hearing.enter_context(heard(self._on_signal))
            known = [one for one in SIGNALS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._remember) for number in known}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._hearing.close()
        self._first.acquire(blocking=False)
        if self._deadline is not None:
            self._deadline.cancel()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number = number

    def _on_signal(self, number: int) -> None:
        if number not in SIGNALS:
            return
        self._seen += number != signal.SIGHUP
        if self._seen > 1:
            # Behind the ^C that a terminal shows.
            self._end(128 + number, f"\n{self.last_words}" if os.isatty(2) else self.last_words)
        self.request(number)

    def _give_up(self, grace_s: float) -> None:
        """The deadline has passed."""
        name = signal.Signals(self.exit_status - 128).name
        end = self.last_words.removeprefix("bytetwin: ") or f"{ENDED}\n"
        self._end(self.exit_status, f"bytetwin: still busy {grace_s:g} s after {name}, {end}")

    def _end(self, status: int, line: str) -> None:
        end_process(status, "" if self.quiet else line)
