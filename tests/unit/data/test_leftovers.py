"""What a killed import leaves behind goes with the next one; what a living one is writing stays."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from data.folders import dataset_names, datasets_root
from data.writer import remove_leftovers
from tests import ROOT
from tests.datasets import documents_of, write_dataset

pytestmark = pytest.mark.usefixtures("datasets")

STOP_WHILE_WRITING = """
import sys
from pathlib import Path
from data.writer import DatasetWriter
with DatasetWriter(Path(sys.argv[1]), replace=True) as writer:
    writer.add("train", [b"unfinished"])
    if sys.argv[2] == "replacing":
        # As far as the first of the two renames that put a new dataset in the place of an old one.
        Path(sys.argv[1]).replace(writer._make_temporary("old"))
    print("ready", flush=True)
    sys.stdin.read()
"""


def start_writing(name: str, how: str = "writing") -> subprocess.Popen[str]:
    """A process that is half-way through writing a dataset."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOP_WHILE_WRITING, str(datasets_root() / name), how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def hidden() -> list[str]:
    return sorted(path.name for path in datasets_root().iterdir() if path.name.startswith("."))


def test_a_dead_process_leaves_nothing_for_ever() -> None:
    first = start_writing("toy")
    kill(first)
    assert [name.startswith(f".toy.partial-{first.pid}-") for name in hidden()] == [True]
    living = start_writing("toy")
    (kept,) = hidden()
    assert kept.startswith(f".toy.partial-{living.pid}-")
    write_dataset("other", train=[b"whole"], replace=True)
    assert hidden() == [kept]
    kill(living)
    write_dataset("other", train=[b"whole"], replace=True)
    assert hidden() == []
    assert dataset_names() == ["other"]


def test_a_dataset_whose_replacement_was_cut_short_comes_back() -> None:
    write_dataset(train=[b"the old text"])
    kill(start_writing("toy", "replacing"))
    assert dataset_names() == []
    assert len(hidden()) == 2
    write_dataset("other", train=[b"whole"], replace=True)
    assert hidden() == []
    assert documents_of("toy", "train") == [b"the old text"]


def test_it_comes_back_when_it_is_next_read() -> None:
    write_dataset(train=[b"the old text"])
    kill(start_writing("toy", "replacing"))
    assert documents_of("toy", "train") == [b"the old text"]
    assert hidden() == []


@pytest.mark.parametrize(
    ("moment", "text"),
    [("exchange", b"the old text"), ("sync_folder", b"the old text"), ("shutil.rmtree", b"a new text")],
)
def test_a_kill_leaves_the_old_dataset_or_the_new_one(moment: str, text: bytes) -> None:
    write_dataset(train=[b"the old text"])
    program = (
        "import os, signal, sys; from data import writer; from tests.datasets import write_dataset\n"
        "*path, last = sys.argv[1].split('.'); owner = getattr(writer, path[0]) if path else writer\n"
        "setattr(owner, last, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))\n"
        "write_dataset(train=[b'a new text'], replace=True)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, moment], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert documents_of("toy", "train") == [text]
    assert len(hidden()) == 1
    write_dataset("other", train=[b"whole"])
    assert hidden() == []
    assert documents_of("toy", "train") == [text]


def test_the_old_one_goes_where_a_new_one_is_in_place() -> None:
    write_dataset(train=[b"the old text"])
    kill(start_writing("toy", "replacing"))
    old = next(name for name in hidden() if ".old-" in name)
    (datasets_root() / "toy").mkdir()
    remove_leftovers(datasets_root())
    assert hidden() == []
    assert not (datasets_root() / old).exists()
    assert list((datasets_root() / "toy").iterdir()) == []


def test_a_folder_that_another_machine_is_writing_is_left_alone() -> None:
    # Its process is not known here, but its lock is held.
    living = start_writing("toy")
    (name,) = hidden()
    unknown = datasets_root() / name.replace(f"-{living.pid}-", "-99999999999999-")
    (datasets_root() / name).rename(unknown)
    write_dataset("other", train=[b"whole"], replace=True)
    assert hidden() == [unknown.name]
    kill(living)
    write_dataset("other", train=[b"whole"], replace=True)
    assert hidden() == []


def test_folders_of_other_kinds_are_left_alone() -> None:
    datasets_root().mkdir()
    for name in (".cache-1", ".toy.partial-abc", ".toy.partial-12", "toy.partial-99999999-x"):
        (datasets_root() / name).mkdir()
    before = sorted(datasets_root().iterdir())
    remove_leftovers(datasets_root())
    assert sorted(datasets_root().iterdir()) == before
