"""Every command that writes, killed where it writes and at random moments, then given again.

A command runs in a child process in a folder of its own. The first run is left alone: it counts the places where files
are opened to be written, flushed, renamed or removed, and its folder is what every other run must come to. Each kill
starts from the same folder: the process dies at one of these places (at a flush perhaps with half of the file written)
or after some time; whatever is there then must be readable; the same command again must succeed, resume from the newest
checkpoint that was on disk, and leave the same files and no others.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.worker import GOLDEN, ROOT

WAIT_S = 300.0
# A run with validations enough for a fit and with several checkpoints.
SETTINGS = "training.steps=8 training.val_every_steps=1 training.checkpoint_every_steps=2 schedule.warmdown_frac=0.1"
TRAIN = "train bytes.toml --engine mlx " + " ".join(f"--set {item}" for item in SETTINGS.split())


@dataclass(frozen=True)
class Case:
    """A command that writes. The files that match `exact` must be the same to the bit; the set of all always must."""

    command: str
    exact: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        return self.command.split()


CASES = [
    Case(f"{TRAIN} --run new --resume", ("runs/new/artifact.btw", "runs/new/checkpoints/*.safetensors")),
    Case(f"{TRAIN} --run half --resume", ("runs/half/artifact.btw", "runs/half/checkpoints/*.safetensors")),
    Case("pack done", ("runs/done/artifact.btw",)),
    Case("pack done --weights best --output x.btw", ("x.btw",)),
    Case("score done --engine mlx", ("runs/done/artifact.btw",)),
    Case("score done --engine numpy --max-symbols 48 --output x.json"),
    Case("record done --output records/r --replace", ("records/r/submission.json",)),
    Case("record done --output records/old --replace", ("records/old/submission.json",)),
    Case("compress bytes.toml --model done --engine numpy --output x.btz", ("x.btz",)),
    Case("soup done done --engine numpy --max-symbols 48 --output x.btw", ("x.btw",)),
    Case("fit done", ("runs/done/fit.json",)),
    Case("compare done done --output x.md", ("x.md",)),
    Case("preflight bytes.toml --engine mlx --quick --force parity --output x.json"),
    Case("data build --replace", ("datasets/builtin/manifest.json",)),
    Case("data import new a.jsonl --heldout-frac 0.5 --replace", ("datasets/new/*",)),
    Case("data import old a.jsonl --split train --replace", ("datasets/old/*",)),
    Case("tokenizer train t golden --vocab-size 320 --replace", ("datasets/tokenizers/*",)),
    Case(
        "tokenizer encode old golden --tokenizer datasets/golden-tokens/tokenizer.model --replace", ("datasets/old/*",)
    ),
    Case("sweep bytes.toml --engine mlx --seeds 2 --name s", ("runs/s/*/artifact.btw",)),
]


class Lost(Exception):
    """After a kill something is unreadable, lost, left over or does not work."""


def run_kills(count: int, seed: int, only: int | None = None, cases: list[Case] = CASES) -> int:
    """Kill `count` times, all places in a shuffled order first; prints a line of counts and returns an exit status."""
    rng, counts, begin_s = random.Random(f"kill {seed}"), Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bytetwin-kill-") as scratch:
        bench = Bench(Path(scratch))
        plans = [(case, place) for case in cases for place in bench.reference(case).places]
        rng.shuffle(plans)
        for number in range(count):
            case, place = plans[number % len(plans)]
            # Later rounds die at any moment; there is one of time in each four of the first round, too.
            timed = number >= len(plans) or rng.random() < 0.25
            cut = rng.random() if rng.random() < 0.5 else None
            after_s = rng.uniform(0, bench.reference(case).seconds)
            if only not in (None, number):
                continue
            plan = Plan(after_s=after_s) if timed else Plan(place=place, cut=cut)
            try:
                counts[bench.kill(case, plan)] += 1
            except Lost as problem:
                counts["lost"] += 1
                print(
                    f"python -m tests.fuzz kill --seed {seed} --only {number}\n    {case.command}, {plan}: {problem}\n",
                    flush=True,
                )
            counts["by " + " ".join(word for word in case.words[:2] if word.isalpha())] += 1
    print(
        ", ".join(
            f"{name.removeprefix('by ')} {number}" for name, number in sorted(counts.items()) if name.startswith("by ")
        )
    )
    print(
        f"kill: total {counts['killed'] + counts['ended'] + counts['lost']}, killed {counts['killed']}, ended before "
        f"{counts['ended']}, lost {counts['lost']} ({time.monotonic() - begin_s:.0f} s)"
    )
    return 1 if counts["lost"] else 0


@dataclass(frozen=True)
class Plan:
    """Where a process dies: before the change number `place` of a file, or after some seconds. With `cut` the file that
    is flushed there has this share of its bytes only, as if it had died while it wrote. `by` may be a signal that it
    handles."""

    place: int | None = None
    by: signal.Signals = signal.SIGKILL
    cut: float | None = None
    after_s: float | None = None


@dataclass(frozen=True)
class Reference:
    """What a command comes to when nobody kills it."""

    places: range
    seconds: float
    files: set[str]
    exact: dict[str, str]


class Bench:
    """Folders to kill commands in, all from one folder that is prepared once."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.folder = scratch, scratch / "in"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.fuzz.preload"])
        self._references: dict[Case, Reference] = {}
        self._prepare()

    def reference(self, case: Case) -> Reference:
        if case not in self._references:
            self._fresh()
            begin_s = time.monotonic()
            status, told = self._run(case, Plan())
            assert status == 0, f"{case.command}: {told}"
            places = int((self.scratch / "places").read_text())
            files = self._files()
            self._references[case] = Reference(range(places), time.monotonic() - begin_s, files, self._exact(case))
        return self._references[case]

    def kill(self, case: Case, plan: Plan) -> str:
        """`killed`, or `ended` where the command was done before. Raises Lost."""
        expected = self.reference(case)
        self._fresh()
        status, told = self._run(case, plan)
        if status not in (0, -signal.SIGKILL, -signal.SIGALRM):
            raise Lost(f"status {status}: {told[-300:]}")
        self._check_readable()
        newest, begun = self._newest_steps(), {run: len(_resumed(run)) for run in self._newest_steps()}
        again = self._again(case)
        if again[0] != 0:
            raise Lost(f"again: status {again[0]}: {again[1][-300:]}")
        self._check_readable()
        files = self._files()
        if files != expected.files:
            raise Lost(f"left over {sorted(files - expected.files)}, missing {sorted(expected.files - files)}")
        if different := [name for name, value in self._exact(case).items() if expected.exact.get(name) != value]:
            raise Lost(f"other bytes than without a kill: {different}")
        for run, step in newest.items():
            for began in _resumed(run)[begun[run] :]:
                if began < step:
                    raise Lost(f"{run.name} resumed at step {began}, step {step} was on disk")
        return "killed" if status else "ended"

    def _prepare(self) -> None:
        """The folder that everything starts from: datasets, a finished run, one killed half-way, an old record."""
        self.folder.mkdir()
        shutil.copytree(GOLDEN / "datasets", self.folder / "datasets")
        shutil.copyfile(GOLDEN / "bytes" / "spec.toml", self.folder / "bytes.toml")
        lines = [
            json.dumps({"text": f"number {number}: {hashlib.sha256(bytes([number])).hexdigest()}"})
            for number in range(40)
        ]
        (self.folder / "a.jsonl").write_text("\n".join(lines))
        (self.folder / "records").mkdir()
        first = ("record done --output records/old", "data import old a.jsonl --split train", "data build")
        for command in (f"{TRAIN} --run done", *first):
            status, told = self._run(Case(command), Plan())
            assert status == 0, f"{command}: {told}"
        self._halve()
        shutil.move(self.folder, self.scratch / "start")

    def _halve(self) -> None:
        """Run `half` is `done`, killed in the middle."""
        done, half = self.folder / "runs" / "done", self.folder / "runs" / "half"
        (half / "checkpoints").mkdir(parents=True)
        for name in ("spec.toml", "environment.json", "metrics.jsonl"):
            shutil.copyfile(done / name, half / name)
        kept = sorted((done / "checkpoints").glob("step-*"))[:2]
        for path in kept:
            shutil.copyfile(path, half / "checkpoints" / path.name)

    def _fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.scratch / "start", self.folder)

    def _run(self, case: Case, plan: Plan) -> tuple[int, str]:
        """(exit status, negative for a signal; what was said) of the command."""
        told = self.scratch / "told"
        process = self._context.Process(target=run_command, args=(case.words, self.folder, plan, self.scratch))
        process.start()
        process.join(WAIT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise Lost(f"hangs: {told.read_text()[-300:]}")
        return process.exitcode, told.read_text(errors="replace")

    def _again(self, case: Case) -> tuple[int, str]:
        """The same command, unharmed. A run of a sweep ends itself when its parent is gone: until then it is in use."""
        limit_s = time.monotonic() + WAIT_S
        while (ended := self._run(case, Plan()))[0] != 0 and "in use" in ended[1] and time.monotonic() < limit_s:
            time.sleep(0.1)
        return ended

    def _files(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")}

    def _exact(self, case: Case) -> dict[str, str]:
        paths = [path for pattern in case.exact for path in self.folder.glob(pattern)]
        return {
            path.relative_to(self.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
        }

    def _newest_steps(self) -> dict[Path, int]:
        runs = [path.parent for path in self.folder.glob("runs/**/spec.toml")]
        steps = {run: [int(path.stem[5:]) for path in run.glob("checkpoints/step-*.json")] for run in runs}
        return {run: max(found, default=0) for run, found in steps.items()}

    def _check_readable(self) -> None:
        """Whatever has its own name, and is not a temporary file, can be read; every checkpoint is whole."""
        from data.datasets import verify_dataset
        from shared.artifact import read_artifact
        from shared.runs.checkpoints import CheckpointStore

        os.environ["BYTETWIN_DATASETS"] = str(self.folder / "datasets")
        try:
            for path in self.folder.rglob("*"):
                if any(part.startswith(".") for part in path.relative_to(self.folder).parts):
                    continue
                if path.suffix == ".btw":
                    read_artifact(path)
                if path.suffix == ".json":
                    json.loads(path.read_bytes())
                if path.name == "manifest.json" and (problems := verify_dataset(path.parent.name)):
                    raise Lost("; ".join(problems))
                if path.name == "checkpoints":
                    store = CheckpointStore(path, 9)
                    for step in store.steps():
                        store.load_step(step)
        except Exception as error:
            if isinstance(error, Lost):
                raise
            raise Lost(f"{type(error).__name__}: {error}") from None
        for kept in ("records/old/submission.json", "datasets/old/manifest.json", "runs/done/spec.toml"):
            hidden = (self.folder / kept).parents[1].glob(f".{Path(kept).parent.name}.*/{Path(kept).name}")
            if not (self.folder / kept).exists() and not any(hidden):
                raise Lost(f"{kept} is gone")


def run_command(words: list[str], folder: Path, plan: Plan, scratch: Path) -> None:
    """What a child does: the command in its folder, killed as planned; the number of places goes to a file, as does
    what it prints."""
    for name, descriptor in (("printed", 1), ("told", 2)):
        os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    os.environ["BYTETWIN_DATASETS"] = str(folder / "datasets")
    os.environ["PYTHONPATH"] = str(ROOT)
    sys.dont_write_bytecode = True
    if words[:2] == ["data", "build"]:
        _small_library()
    main: Callable[[list[str]], int] = importlib.import_module("shared.cli.main").main
    places = Places(folder, plan)
    sys.addaudithook(places.hook)
    os.fsync = places.flush  # type: ignore[assignment]
    if plan.after_s is not None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # Nothing can handle it then.
        signal.setitimer(signal.ITIMER_REAL, max(plan.after_s, 1e-3))
    status = main(words)
    if plan == Plan():
        (scratch / "places").write_text(str(places.seen))
    sys.stdout.flush()
    os._exit(status)


class Places:
    """Counts the changes of files in a folder, and ends the process before one of them."""

    WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan, self.seen = str(folder), plan, 0
        self.opened, self.dying, self.fsync = Path(), False, os.fsync

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.dying or (event != "open" and event not in self.EVENTS) or isinstance(args[0], int):
            return
        path = Path.cwd() / os.fsdecode(args[0])
        if str(path).startswith(self.folder):
            if event == "open":
                self.opened = path
            if event != "open" or args[2] & self.WRITING:
                self.change()

    def flush(self, descriptor: int) -> None:
        self.change(descriptor)
        self.fsync(descriptor)

    def change(self, flushed: int | None = None) -> None:
        if self.seen == self.plan.place and self.plan.by != signal.SIGKILL:
            os.kill(os.getpid(), self.plan.by)
        elif self.seen == self.plan.place:
            self.dying = True
            with contextlib.suppress(OSError):
                # What has its own name is whole by then: only a temporary file may have been cut short.
                hidden = "/." in str(self.opened).removeprefix(self.folder)
                if self.plan.cut is not None and flushed is not None and hidden:
                    size = self.opened.stat()
                    if os.path.samestat(os.fstat(flushed), size):
                        os.truncate(self.opened, int(self.plan.cut * size.st_size))
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1


def _small_library() -> None:
    """The library of Python is two documents: reading all of it takes ten seconds and writes the same way."""
    builtin: Any = importlib.import_module("data.builtin")
    builtin.build_corpus = lambda progress: builtin.BuiltinCorpus(
        ["a first text " * 50], ["another text " * 50], "two texts"
    )


def _resumed(run: Path) -> list[int]:
    """The steps at which a run was resumed, so far."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [event["step"] for event in map(json.loads, lines) if event.get("event") == "resume"]
