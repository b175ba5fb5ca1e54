"""Processes that tests start: how long they wait for them, who is alive, and which signals they may get."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import ROOT

# A deadline ends a test that hangs; a test that works waits for less. A process that imports torch is ready after 3 s
# alone, and after half a minute where ten others want the same two cores.
WAIT_S = 300.0
POLL_S = 0.02

# Where Linux tells about processes. Elsewhere `ps` does, which not every Linux has.
PROC = Path("/proc")

STOPPING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


@contextmanager
def started(words: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process with pipes, begun at the root of the tree; it is killed at the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(
    condition: Callable[[], Any], what: str, process: subprocess.Popen | None = None, pause_s: float = POLL_S
) -> None:
    """Return as soon as the condition holds. Fails if `process` ends before, or after WAIT_S."""
    limit = time.monotonic() + WAIT_S
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"status {process.returncode} before {what}: {_said(process)}")
        assert time.monotonic() < limit, f"waited {WAIT_S:g} s: {what}"
        time.sleep(pause_s)


def run_python(program: str, *words: object, **environment: str) -> str:
    """What a program prints in a process of its own, which must end well; `environment` is what it has more."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def alive(pid: int) -> bool:
    """Whether a process exists that is not merely waiting to be collected."""
    if PROC.is_dir():
        try:
            return _stat(pid)[0] != "Z"
        except OSError:
            return False
    return _ps("-o", "stat=", "-p", str(pid)).strip()[:1] not in ("", "Z")


def children(parent: int) -> list[tuple[int, str]]:
    """(pid, command line) of each child, in the order they were started."""
    found = []
    if PROC.is_dir():
        for path in PROC.glob("[0-9]*"):
            try:
                if int(_stat(int(path.name))[1]) == parent:
                    words = (path / "cmdline").read_bytes().split(b"\0")
                    found.append((int(path.name), b" ".join(words).decode().strip()))
            except OSError:
                continue
    else:
        for line in _ps("-axwwo", "pid=,ppid=,command=").splitlines():
            pid, of, command = line.split(maxsplit=2)
            if int(of) == parent:
                found.append((int(pid), command.strip()))
    return sorted(found)


def start_with_default_signals() -> None:
    """Children start with the default action of each stopping signal, though nohup or `&` made this process ignore it.

    What is ignored stays so in a new program; what is handled does not. So the handler here, which does nothing, takes
    the place of ignoring.
    """
    for number in STOPPING:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


def _stat(pid: int) -> list[str]:
    """State, parent and what follows in Linux's /proc/PID/stat."""
    return (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()


def _ps(*words: str) -> str:
    return subprocess.run(["ps", *words], capture_output=True, text=True, timeout=WAIT_S).stdout


def _said(process: subprocess.Popen) -> str:
    return "".join(filter(None, process.communicate()))
