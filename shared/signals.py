"""Signals as they come: a thread reads them from the wake-up descriptor, which the interpreter writes to immediately.

Python runs signal handlers between two of its own instructions only, so not before a long call of a library is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

# Seconds that a process without anything to save may take to end in good order.
BRIEF_GRACE_S = 2.0


@contextlib.contextmanager
def heard(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Call `on_signal` with the number of each signal that has a handler, in a thread of its own. For the main thread,
    where handlers belong."""
    stop = _listen(on_signal)
    try:
        yield
    finally:
        stop()


def end_soon_after_interrupt(last_words: str) -> None:
    """From now on let no library keep this process after Ctrl-C, which raises KeyboardInterrupt as always: after
    BRIEF_GRACE_S, or at once after another, write `last_words` to stderr and exit.

    For work that loses nothing when it is killed. Where Ctrl-C is ignored or has a handler of its own it stays so.
    """
    seen = threading.Event()

    def on_signal(number: int) -> None:
        if number != signal.SIGINT or signal.getsignal(number) is not signal.default_int_handler:
            return
        if seen.is_set():
            end_process(128 + number, last_words)
        seen.set()
        deadline = threading.Timer(BRIEF_GRACE_S, end_process, [128 + number, last_words])
        deadline.daemon = True
        deadline.start()

    if threading.current_thread() is threading.main_thread():
        _listen(on_signal)


def _listen(on_signal: Callable[[int], None]) -> Callable[[], None]:
    """Start to listen; returns what ends that."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while received := os.read(reader, 1):
            on_signal(received[0])
        os.close(reader)

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def stop() -> None:
        signal.set_wakeup_fd(before)
        os.close(writer)
        listener.join()

    return stop


def end_process(status: int, last_words: str) -> None:
    """Write the words to stderr, not through sys.stderr, whose lock another thread may hold for ever, and exit."""
    with contextlib.suppress(OSError):
        os.write(2, last_words.encode(errors="backslashreplace"))
    os._exit(status)
