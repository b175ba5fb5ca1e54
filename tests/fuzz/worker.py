"""Runs hostile inputs in a child process that is watched: what a reader made of each, and whether it lived.

A child takes a range of inputs and reports one after the other, so that a crash of the interpreter, a hang or a bomb is
seen and costs one child. Input `index` of a kind is made by a generator seeded with (kind, seed, index) alone.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shared.errors import UserError

KINDS = ("artifact", "artifact_2", "coded", "checkpoint", "dataset", "spec", "run", "cli")
VERDICTS = ("refused", "accepted", "crashed", "slow", "large")
# Seconds of processor time, and bytes of memory beyond what the process had before.
MAX_CPU_S, MAX_BYTES = 2.0, 500 << 20
# Seconds, on a machine that may be busy, after which an input is one that hangs.
HANG_S = 20.0
# Inputs that one child reads: what it keeps of them must not add up to a bomb.
MAX_INPUTS = 2000
ADDRESS_SPACE_BYTES = 8 << 30
MAX_LINE = 500
ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "2026-11-26"

Reader = Callable[[], object]


class Broken(Exception):
    """What a user would see is not what was promised."""


def confine(folder: Path) -> None:
    """From now on this process may write in a folder only: a hostile output may be a device or a file of the machine
    that runs this, perhaps as root. What a library in another language does is not seen."""
    inside = f"{folder.resolve()}/"
    write_flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    # Event of the interpreter: which of its arguments are paths that are changed.
    changing = {"os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.mkdir": (0,), "os.truncate": (0,)}
    changing |= {"os.link": (1,), "os.symlink": (1,), "os.chmod": (0,), "os.chown": (0,), "shutil.rmtree": (0,)}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            paths = args[:1] if args[2] & write_flags else ()
        else:
            paths = tuple(args[at] for at in changing.get(event, ()))
        if event in ("os.remove", "os.rmdir") and args[1] != -1:
            return  # Relative to an open folder, which shutil.rmtree was told.
        for path in paths:
            if isinstance(path, int):
                continue
            # Of a link the name is changed, but what it leads to is opened.
            where = Path(os.fsdecode(path))
            real = os.path.realpath(where if event == "open" else where.parent) + (
                "/" if event == "open" else f"/{where.name}/"
            )
            if (
                real.startswith(inside)
                or (event, real) == ("open", f"{os.devnull}/")
                or (event == "os.mkdir" and where.is_dir())
            ):
                continue
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(where))

    sys.addaudithook(hook)


@dataclass
class Tally:
    """How many inputs came to which end; `failures` has (index, verdict, what was seen) of the bad ones."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, index: int, verdict: str, detail: str) -> None:
        self.counts[verdict] += 1
        if verdict not in ("refused", "accepted"):
            self.failures.append((index, verdict, detail))

    def __str__(self) -> str:
        return f"total {self.counts.total()}, " + ", ".join(f"{name} {self.counts[name]}" for name in VERDICTS)


def run_inputs(
    kind: str, seed: int, indices: range, keep: Path | None = None, tell: Callable[[Tally], None] = lambda _: None
) -> Tally:
    """What became of these inputs; bad ones are kept in `keep`."""
    # A server that has imported everything and has a single thread forks the children.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fuzz.preload"])
    tally, at = Tally(), indices.start
    while at < indices.stop:
        ours, theirs = context.Pipe()
        with tempfile.TemporaryDirectory(prefix="bytetwin-fuzz-") as scratch:
            batch = range(at, min(at + MAX_INPUTS, indices.stop))
            child = context.Process(target=_work, args=(kind, seed, batch, Path(scratch), theirs))
            child.start()
            theirs.close()
            with contextlib.suppress(EOFError):
                while at < batch.stop:
                    tally.add(*ours.recv())
                    if tally.failures and tally.failures[-1][0] == at:
                        _keep(keep, kind, seed, at, Path(scratch))
                        ours.send(None)
                    at += 1
                    tell(tally)
            child.join()
            if at < batch.stop and child.exitcode != 0:
                slow = child.exitcode in (-signal.SIGPROF, -signal.SIGALRM)
                tally.add(at, "slow" if slow else "crashed", f"the process ended with {child.exitcode}")
                _keep(keep, kind, seed, at, Path(scratch))
                at += 1
    return tally


def command(words: Sequence[str]) -> str:
    """Run a command line as a shell would, in this process; returns its stdout. Raises UserError for status 2, and
    Broken for anything that no user should see."""
    from shared.cli.main import main

    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        try:
            status = main(words)
        except SystemExit as end:
            status = int(end.code or 0)
    check_lines(told.getvalue(), status)
    if status == 2:
        raise UserError(told.getvalue())
    return out.getvalue()


def check_lines(told: str, status: int) -> None:
    """Raise Broken unless stderr and exit status are as promised."""
    if bad := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\u2028\u2029]", told):
        raise Broken(f"control character {bad[0]!r} in {told[max(0, bad.start() - 60) : bad.end() + 60]!r}")
    if "Traceback" in told:
        raise Broken(f"a traceback: {told[-300:]!r}")
    if status not in (0, 1, 2):
        raise Broken(f"status {status}")
    if status == 2:
        last = told.rstrip("\n").rpartition("\n")[2]
        if not last.startswith("bytetwin"):
            raise Broken(f"the error is not one line that begins with bytetwin: {told[-300:]!r}")
        if len(last) > MAX_LINE:
            raise Broken(f"a line of {len(last)} characters: {last[:120]!r}")
        if re.search(r"out of memory|not enough memory|allocate|MemoryError", last, re.IGNORECASE):
            raise MemoryError(last)


def show(error: UserError) -> None:
    """Raise Broken unless the command line can print this error as promised."""
    from shared.cli.main import _fail

    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        status = _fail(str(error))
    check_lines(told.getvalue(), status)


def _work(kind: str, seed: int, indices: range, scratch: Path, reports: Connection) -> None:
    """What a child does."""
    warnings.simplefilter("error")
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))
    # The alarms of an input end the process: a handler in Python would wait for C code to return.
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    make = importlib.import_module(f"tests.fuzz.{kind}").make
    os.environ["COLUMNS"] = "200"
    sys.dont_write_bytecode = True
    tempfile.tempdir = str(scratch)
    confine(scratch)
    base = _peak_bytes()
    for index in indices:
        rng, folder = random.Random(f"{kind} {seed} {index}"), scratch / "in"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        os.environ["BYTETWIN_DATASETS"] = str(GOLDEN / "datasets")
        read: Reader = make(rng, folder)
        # To make a bomb takes memory too, which is not the reader's.
        made = _peak_bytes()
        verdict, detail = attempt(read)
        if verdict in ("refused", "accepted") and _peak_bytes() - made > MAX_BYTES:
            verdict, detail = "large", f"{_peak_bytes() - made:,} bytes\n    {detail}"
        reports.send((index, verdict, detail))
        if verdict not in ("refused", "accepted"):
            reports.recv()  # Until the input is kept.
        # A peak never falls: the next input is for a new process.
        if _peak_bytes() - base > MAX_BYTES // 4:
            os._exit(0)
    os._exit(0)


def attempt(read: Reader) -> tuple[str, str]:
    """(verdict, what was seen) of one input."""
    _alarms(MAX_CPU_S, HANG_S)
    try:
        try:
            read()
        except UserError as error:
            show(error)
            return "refused", str(error)
        return "accepted", ""
    except MemoryError as error:
        return "large", _shortly(error)
    except BaseException as error:
        return "crashed", _shortly(error)
    finally:
        _alarms(0, 0)


def _alarms(cpu_s: float, wall_s: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)


def _shortly(error: BaseException) -> str:
    """The last frames of this project and the error, in a few lines."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename.startswith(str(ROOT)) and "/.venv/" not in f.filename
    ]
    where = [f"{Path(f.filename).relative_to(ROOT)}:{f.lineno} {f.name}: {f.line}" for f in frames[-3:]]
    return "\n    ".join([*where, f"{type(error).__name__}: {str(error)[:300]}"])


def _keep(keep: Path | None, kind: str, seed: int, index: int, scratch: Path) -> None:
    """Keep an input with the line that makes it again."""
    if keep is None:
        return
    folder = keep / f"{kind}-{seed}-{index}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "again.txt").write_text(f"python -m tests.fuzz {kind} --seed {seed} --only {index}\n")
    for path in scratch.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20:
            to = folder / path.relative_to(scratch)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)


def _peak_bytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
