"""What tests know of processes holds however the suite was started, and on every system."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ROOT, processes
from tests.processes import STOPPING, WAIT_S, alive, children, wait_until

NUMBERS = [int(number) for number in STOPPING]
SHOW_IGNORED = f"import signal; print([signal.getsignal(n) == signal.SIG_IGN for n in {NUMBERS}])"
# Started with all signals ignored, as under nohup; the first line is what a child sees, the second that it is alive.
STARTED_DEAF = f"""
import os, subprocess, sys
from tests import conftest
subprocess.run([sys.executable, "-S", "-E", "-c", {SHOW_IGNORED!r}])
for number in {NUMBERS}:
    os.kill(os.getpid(), number)
print("alive")
"""


def test_under_nohup_children_get_signals_and_the_suite_does_not() -> None:
    words = ["sh", "-c", 'trap "" HUP INT TERM; exec "$@"', "sh", sys.executable, "-c", STARTED_DEAF]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (done.stdout, done.stderr) == ("[False, False, False]\nalive\n", "")


def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without /proc, as a Mac is, and its `ps`."""
    monkeypatch.setattr(processes, "PROC", Path("/no/proc"))


def named(word: str) -> list[int]:
    return [pid for pid, command in children(os.getpid()) if command.endswith(word)]


@pytest.mark.parametrize("system", [lambda monkeypatch: None, no_proc], ids=["as it is", "without /proc"])
def test_children_and_who_is_alive(system: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("ps") or system is not no_proc:
        system(monkeypatch)
    words = [sys.executable, "-S", "-c", "import time; time.sleep(600)", "a word"]
    with subprocess.Popen(words) as first, subprocess.Popen(words) as second:
        try:
            # Linux shows an empty command line for a moment after the new program has taken over.
            wait_until(lambda: named("a word") == sorted([first.pid, second.pid]), "both command lines")
            assert alive(first.pid)
            first.send_signal(signal.SIGKILL)
            wait_until(lambda: not alive(first.pid), "a death that nobody has asked about yet")
        finally:
            first.kill()
            second.kill()
    assert not alive(second.pid)


def test_waiting_ends_with_what_the_process_said() -> None:
    words = [sys.executable, "-S", "-c", "import sys; sys.exit('no disk')"]
    with (
        subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process,
        pytest.raises(AssertionError, match="status 1 before the first step: no disk"),
    ):
        wait_until(lambda: False, "the first step", process)
