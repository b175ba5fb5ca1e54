"""Commands of `tests.fuzz.chain`, each in a process of its own, and the datasets that they find."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.fuzz.kill import Plan, run_command
from tests.fuzz.worker import GOLDEN, ROOT, Broken, check_lines

WAIT_S = 600.0
Document = dict[str, Any]


def prepare(scratch: Path) -> None:
    """The datasets of all chains: the golden ones, and prose that is longer and of several documents."""
    shutil.copytree(GOLDEN / "datasets", scratch / "datasets")
    lines = (ROOT / "docs" / "tour.md").read_text().split("\n\n")
    texts = ["\n\n".join(lines[at : at + 3]) for at in range(0, 24, 3)]
    (scratch / "prose.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    words = ["data", "import", "prose", "prose.jsonl", "--heldout-frac", "0.3"]
    done = Command(scratch, scratch)(*words)
    assert done.status == 0, done.told


class Done:
    """How a command ended and what it said."""

    def __init__(self, words: list[str], status: int, printed: str, told: str) -> None:
        self.words, self.status, self.printed, self.told = words, status, printed, told

    @property
    def last(self) -> str:
        return self.told.rstrip("\n").rpartition("\n")[2]

    @property
    def document(self) -> Document:
        found: Document = json.loads(self.printed)
        return found


class Command:
    """Runs commands in a folder, each in a process of its own that a server forks."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch, self.ran = folder, scratch, ""
        self._context = multiprocessing.get_context("forkserver")

    def __call__(self, *words: object, plan: Plan | None = None, every_pass: bool = False) -> Done:
        """Run a command; `every_pass`: a score writes its state after each."""
        texts = [str(word) for word in words]
        self.ran = "bytetwin " + " ".join(repr(text) if " " in text else text for text in texts)
        self.fork(_command, texts, self.folder, plan or Plan(), self.scratch, every_pass)
        status = self.status
        told = (self.scratch / "told").read_text(errors="replace")
        if plan is None and "Traceback" in told:
            raise Broken(told[-4000:])
        if plan is None:
            check_lines(told, status)
        return Done(texts, status, (self.scratch / "printed").read_text(errors="replace"), told)

    def fork(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function in a child; its exit status is in `status`. Raises Broken where it hangs."""
        process = self._context.Process(target=function, args=arguments)
        process.start()
        process.join(WAIT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise Broken("hangs")
        self.status = process.exitcode

    @property
    def places(self) -> int:
        """Where the last command changed files, counted."""
        return int((self.scratch / "places").read_text())


def _command(words: list[str], folder: Path, plan: Plan, scratch: Path, every_pass: bool) -> None:
    os.environ["COLUMNS"] = "200"
    # No chain is to spend its time on one check of a score.
    import_module("shared.scoring.later_text").check_later_text.__kwdefaults__["seconds"] = 1.0
    if every_pass:
        import_module("shared.scoring.resume").ScoreState.__init__.__defaults__ = (print, 0.0)
    run_command(words, folder, plan, scratch)
