"""Ctrl-C against libraries that do not come back to Python: a program ends soon, whatever it is doing then."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.processes import WAIT_S, started

PROGRAM = """
import hashlib, signal, sys, time
from shared import signals

signals.BRIEF_GRACE_S = 0.1
signals.end_soon_after_interrupt("the end\\n")

def hangs():
    try:
        print("ready", flush=True)
        time.sleep(600)
    finally:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000_000)

def ends_in_order():
    try:
        print("ready", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        sys.exit(130)

def has_a_handler():
    signal.signal(signal.SIGINT, lambda number, frame: None)
    print("ready", flush=True)
    time.sleep(0.5)
    sys.exit(5)

"""


@pytest.mark.parametrize(
    ("work", "status", "words"), [("hangs", 130, "the end\n"), ("ends_in_order", 130, ""), ("has_a_handler", 5, "")]
)
def test_ctrl_c_ends_a_program_soon(work: str, status: int, words: str) -> None:
    with started([sys.executable, "-c", f"{PROGRAM}{work}()"]) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=WAIT_S) == status
        assert process.stderr.read() == words
