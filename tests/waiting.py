"""How tests wait for other processes: long enough for a busy machine, and no longer than needed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

# A deadline is there to end a test that hangs. A process that starts torch takes 3 s alone, and ten times that on a
# machine with three times as much to do as it has cores.
WAIT_S = 300.0
POLL_S = 0.02


def wait_until(condition: Callable[[], Any], process: subprocess.Popen | None = None, what: str = "") -> None:
    """Poll until the condition holds. Fails where `process` has ended before that, or after WAIT_S."""
    limit = time.monotonic() + WAIT_S
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            output, errors = process.communicate()
            raise AssertionError(f"ended with status {process.returncode} before {what}: {output or ''}{errors or ''}")
        assert time.monotonic() < limit, f"waited {WAIT_S:g} s for {what}"
        time.sleep(POLL_S)
