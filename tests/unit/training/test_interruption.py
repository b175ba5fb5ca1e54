"""Signals: the first is remembered, the second or a deadline ends the process at once, handlers are put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from shared.signals import BRIEF_GRACE_S
from shared.training.interruption import GRACE_S, Interruption, StopRequested
from tests.processes import WAIT_S, started


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_is_remembered(number: signal.Signals, status: int) -> None:
    before = {other: signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
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
        "with Interruption(lambda: print('first', flush=True)) as interruption:\n"
        "    interruption.last_words = 'resume with this\\n'\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 1_000_000_000)\n"
    )
    with started([sys.executable, "-c", program]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "first\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=WAIT_S) == 143
        assert process.stderr is not None and process.stderr.read() == "resume with this\n"


def test_sighup_is_never_the_second_signal_and_stays_ignored_where_it_is() -> None:
    with Interruption() as interruption:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
        time.sleep(0.1)
        assert interruption.exit_status == 143
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            interruption.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def run_with_deadline(number: signal.Signals, grace_s: float, quiet: bool = False) -> tuple[int | None, str, float]:
    """A process that hangs in one call, the notice included, gets a signal: (status or None, stderr, seconds)."""
    program = (
        "import sys, threading\n"
        "from shared.training.interruption import Interruption\n"
        "never = threading.Event()\n"
        "with Interruption(never.wait, float(sys.argv[1]), quiet=sys.argv[2] == 'True'):\n"
        "    print('ready', flush=True)\n"
        "    threading.Lock().acquire() and never.wait()\n"
    )
    with started([sys.executable, "-c", program, str(grace_s), str(quiet)]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        begin = time.monotonic()
        process.send_signal(number)
        try:
            status: int | None = process.wait(timeout=WAIT_S if number == signal.SIGTERM else 1.0)
        except subprocess.TimeoutExpired:
            status = None
        seconds = time.monotonic() - begin
        process.kill()
        return status, process.communicate()[1], seconds


def test_a_process_that_hangs_after_sigterm_is_ended_at_the_deadline_with_one_line() -> None:
    status, errors, seconds = run_with_deadline(signal.SIGTERM, 0.4)
    assert status == 143 and seconds >= 0.4
    assert errors == "bytetwin: still busy 0.4 s after SIGTERM, ended at once; files saved before are intact\n"


def test_a_rank_that_leaves_the_talking_to_another_ends_without_a_word() -> None:
    status, errors, _ = run_with_deadline(signal.SIGTERM, 0.2, quiet=True)
    assert status == 143 and errors == ""


@pytest.mark.slow
def test_ctrl_c_has_no_deadline() -> None:
    status, errors, _ = run_with_deadline(signal.SIGINT, 0.1)
    assert status is None and errors == ""


def test_a_process_that_is_out_in_time_never_meets_the_deadline() -> None:
    with Interruption(grace_s=0.2) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested):
            interruption.check()
    time.sleep(0.4)


def test_the_deadline_leaves_a_spot_machine_time_to_spare() -> None:
    assert GRACE_S == 20.0 and Interruption().grace_s == GRACE_S


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_has_nothing_to_save_ends_soon_in_the_middle_of_a_long_call(number: signal.Signals) -> None:
    """A compiler does not come back to Python for a minute."""
    program = (
        "import hashlib\n"
        "from shared.training.interruption import Interruption\n"
        "with Interruption(grace_s=60.0) as interruption:\n"
        "    interruption.last_words = 'bytetwin: resume with this\\n'\n"
        "    with interruption.nothing_to_save():\n"
        "        print('ready', flush=True)\n"
        "        hashlib.pbkdf2_hmac('sha256', b'', b'', 1_000_000_000)\n"
    )
    with started([sys.executable, "-c", program]) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(timeout=WAIT_S) == 128 + number
        expected = f"bytetwin: still busy {BRIEF_GRACE_S:g} s after {number.name}, resume with this\n"
        assert process.stderr.read() == expected


def test_what_has_nothing_to_save_ends_in_good_order_where_it_can() -> None:
    with Interruption() as interruption:
        with pytest.raises(StopRequested), interruption.nothing_to_save():
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopRequested), interruption.nothing_to_save():
            pytest.fail("a stop was asked for before")
