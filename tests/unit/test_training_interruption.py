"""Signals: the first is remembered, the second ends the process at once, handlers are put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.training.interruption import Interruption, StopRequested

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_remembered(number: signal.Signals, status: int) -> None:
    before = {other: signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM)}
    told: list[int] = []
    with Interruption(lambda: told.append(1)) as interruption:
        interruption.check()
        os.kill(os.getpid(), number)
        with pytest.raises(StopRequested):
            interruption.check()
    assert interruption.exit_status == status and told == [1]
    assert {other: signal.getsignal(other) for other in before} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_second_signal_ends_the_process_even_in_the_middle_of_a_long_call() -> None:
    """The call does not come back to Python for minutes, as a training step may not for a while."""
    program = (
        "import hashlib\n"
        "from shared.training.interruption import Interruption\n"
        "with Interruption(lambda: print('first', flush=True)):\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 1_000_000_000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "first\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=10) == 143
        finally:
            process.kill()
