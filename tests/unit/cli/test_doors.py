"""What people type, read and redirect: refused in one line, shown as it is, written to files alone, and outlived."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.artifact import write_artifact
from shared.cli import spec as spec_command
from shared.cli.command import CommandResult
from shared.cli.main import COMMANDS
from shared.cli.screen import Screen
from shared.errors import MOST_LETTERS, one_line, visible
from shared.imports import import_by_name
from shared.model import random_weights
from shared.runs.run_directory import RunDirectory
from shared.runs.target import find_run
from shared.scoring.windows import MOST_PADDED_SYMBOLS, check_window
from shared.spec import load_spec
from tests import ROOT
from tests.command_line import CommandLine, set_words
from tests.processes import WAIT_S, started, wait_until

HOSTILE = "a\x1b[31m\nb\u202e\x00\udcff[/]"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with an artifact, in a path that rich would take for markup."""
    monkeypatch.chdir(tmp_path)
    directory = RunDirectory(tmp_path / "q[" / "]good")
    directory.path.mkdir(parents=True)
    spec = load_spec("tiny", ["data.train=toy", "data.heldout=toy"])
    directory.write_spec(spec)
    write_artifact(directory.artifact_path, spec, random_weights(spec, 1))
    return directory.path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("trian tiny", "did you mean 'train'?"),
        ("data lst", "did you mean 'list'?"),
        ("spec smok", "did you mean 'smoke'?"),
        (
            "spec tiny --set num_layers=3",
            "did you mean model.num_layers or model.decoder.num_layers?",
        ),
        ("spec tiny --set training.step=3", "unknown key training.step, did you mean 'steps'?"),
        ("spec tiny --set model.steps=3", "unknown key model.steps, did you mean training.steps?"),
        ("score good --runs-dir q[", "did you mean ']good'?"),
        ("audit ]goood --runs-dir q[", "did you mean ']good'?"),
        ("watch q[/]good/artifact.btw", "is a file, a run is a folder, did you mean the run q[/]good?"),
        ("compare file", "file is a file, a run is a folder"),
        ("train tiny --engine mlx --runs-dir file", "--runs-dir: file: not a folder"),
        ("train tiny --runs-dir file/x --engine numpyy", "no such choice"),
        ("generate ]good --runs-dir q[ --engine numpy --seed -1", "seed -1: must be 0 or more"),
        ("sweep tiny --seeds 9999999999", "at most 10,000"),
        ("sweep tiny --seeds 9 --vary training.steps=" + ",".join(map(str, range(2000))), "a sweep of 18,000 runs"),
        (f"generate {'x' * 300}", "name too long"),
        (f"generate x --seed {'b' * 70_000}", "invalid int value"),
        (f"score {'x' * 100_000}", "name too long"),
    ],
)
def test_what_cannot_be_used_is_one_line(words: str, told: str, run: Path, cli: CommandLine) -> None:
    Path("file").write_text("")
    error = cli.refusal(*words.split(" "))
    assert told in error and len(error) <= MOST_LETTERS + 1


@pytest.mark.parametrize("command", ["pack", "score", "compare", "fit", "soup", "sweep", "preflight"])
def test_every_output_is_a_regular_file_or_refused(command: str, run: Path, cli: CommandLine) -> None:
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    for output in (".", "..", "q[", os.devnull, "pipe", "link", "absent/file"):
        error = cli.refusal(command, "tiny", "--output", output)
        assert "regular file" in error or "is a directory" in error or "does not exist" in error
    assert Path("pipe").is_fifo() and Path("link").is_symlink() and not Path(os.devnull).is_file()


def test_a_linked_output_goes_where_the_link_points(run: Path, cli: CommandLine) -> None:
    Path("target.btw").write_text("old")
    Path("link.btw").symlink_to("target.btw")
    assert cli("soup", run, "--output", "link.btw").status == 2
    assert Path("link.btw").is_symlink() and Path("target.btw").read_text() == "old"


def test_every_command_that_takes_a_run_takes_the_folder_of_runs(cli: CommandLine) -> None:
    for name in COMMANDS:
        parser = argparse.ArgumentParser()
        import_by_name(f"shared.cli.{name}").configure(parser)
        usage = parser.format_usage()
        assert "--runs-dir" in usage or "RUN" not in usage, name
        if "--runs-dir" not in usage:
            continue
        words = [name, "x", *(["--model", "x"] if name in ("compress", "decompress") else [])]
        assert "--runs-dir: no: not a folder" not in cli(*words, "--runs-dir", "no").err
        assert "--runs-dir: /dev/null: not a folder" in cli.refusal(*words, "--runs-dir", os.devnull)


def test_a_folder_that_is_no_run_does_not_hide_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "runs/data", "runs/tests"):
        Path(name).mkdir(parents=True)
    Path("runs/data/spec.toml").write_text("")
    found = [find_run(name) for name in ("data", "tests", "nowhere")]
    assert [run and str(run.path) for run in found] == ["runs/data", "runs/tests", None]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(5, "Input/output error", "a file"), "a file: input/output error"),
        (MemoryError(), "not enough memory"),
        (RecursionError("maximum"), "the input is nested too deeply"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "not UTF-8 text: 'ascii' codec can't encode"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_errors_of_the_system_are_one_line(
    error: BaseException, told: str, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(args: object) -> CommandResult:
        raise error

    monkeypatch.setattr(spec_command, "run", broken)
    before = signal.getsignal(signal.SIGINT)
    done = cli("spec", "tiny")
    assert done.status == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert done.err.startswith(f"bytetwin: {told}") and done.err.count("\n") == 1 and done.out == ""
    assert signal.getsignal(signal.SIGINT) == before


def test_a_line_is_short_and_shows_control_characters() -> None:
    assert one_line(HOSTILE) == "a\\x1b[31m b\\u202e\\x00\\udcff[/]"
    assert visible("tab\tand\nline \u00e9 \u732b") == "tab\tand\nline \u00e9 \u732b"
    long = one_line("start" + "x" * 10_000 + "end")
    assert len(long) == MOST_LETTERS and long.startswith("start") and long.endswith("end")


def test_a_screen_shows_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    out = Screen()
    with out.status(HOSTILE):
        out.print(":smile: [red]x[/] " + HOSTILE)
    told = capsys.readouterr().err
    assert ":smile: [red]x[/] a\\x1b[31m\nb\\u202e\\x00\\udcff[/]" in told


def test_in_a_file_only_stages_that_last_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.views.stage_clock.PROGRESS_EVERY_S", 0.05)
    path = tmp_path / "errors"
    with path.open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with Screen().status("parity") as status:
            status.update(f"parity: {HOSTILE}")
            wait_until(lambda: path.read_text().count("\n") == 2, "two lines")
            status.update("parity: quick")
        said = path.read_text()
        time.sleep(0.1)
    assert set(said.splitlines()) == {"parity: a\\x1b[31m b\\u202e\\x00\\udcff[/], 0:00"}
    assert path.read_text() == said, "nothing is said after the end"


def test_tables_go_to_stdout_uncut_unless_there_is_a_document(
    datasets: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    for words in (["data", "list"], ["tokenizer", "list"]):
        table, listed = cli(*words), cli(*words, "--json")
        assert (
            str(datasets.parent) in table.out
            and "SHA-256" in table.out
            and table.err == ""
            and json.loads(listed.out)
            and listed.err
        )


class Gone(io.StringIO):
    """A stream that cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "Input/output error")])
def test_a_screen_without_readers_is_silent(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Gone(error))
    out = Screen()
    out.print("one")
    out.print("two")
    assert out.quiet


def test_a_full_disk_behind_stdout_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Gone(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        Screen(stderr=False).print("one")


def test_a_window_far_longer_than_the_text_is_refused() -> None:
    check_window(MOST_PADDED_SYMBOLS, 100)
    check_window(2 * MOST_PADDED_SYMBOLS, 2 * MOST_PADDED_SYMBOLS)
    with pytest.raises(ValueError, match="longer than the text, at most 65,536"):
        check_window(2**34, 256)


def test_a_prompt_that_the_terminal_cannot_encode_is_escaped(run: Path) -> None:
    words = ["-m", "shared.cli.main", "generate", run, "--engine", "numpy", "--bytes", "0", "--prompt", "caf\u00e9"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9\n", "")


TRAIN = ["-m", "shared.cli.main", "train", "tiny", "--engine", "torch", "--no-finish"]
SETTINGS = ["training.compile=false", "evaluation.val_symbols=256", "training.log_every_steps=1"]


@pytest.mark.slow
def test_training_outlives_the_reader_of_its_log(tmp_path: Path) -> None:
    words = [*TRAIN, "--runs-dir", tmp_path, "--run", "a", *set_words(*SETTINGS, "training.steps=20")]
    with started([sys.executable, *map(str, words)]) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        assert process.wait(timeout=WAIT_S) == 0
    assert (tmp_path / "a" / "checkpoints" / "step-00000020.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "status"),
    [
        (lambda process: process.send_signal(signal.SIGHUP), 129),
        (lambda process: [process.send_signal(number) for number in (signal.SIGHUP, signal.SIGTERM)], None),
    ],
    ids=["SIGHUP", "both at once"],
)
def test_a_lost_terminal_saves(
    stop: Callable[[subprocess.Popen[str]], object], status: int | None, tmp_path: Path
) -> None:
    words = [*TRAIN, "--runs-dir", tmp_path, "--run", "a", *set_words(*SETTINGS, "training.steps=100000")]
    with started([sys.executable, *map(str, words)]) as process:
        metrics = tmp_path / "a" / "metrics.jsonl"
        wait_until(lambda: metrics.exists() and '"event": "step"' in metrics.read_text(), "a step", process)
        stop(process)
        errors = process.communicate(timeout=WAIT_S)[1]
    assert process.returncode == status or (status is None and process.returncode in (129, 143))
    assert "resume with: bytetwin train" in errors and list((tmp_path / "a" / "checkpoints").glob("*.safetensors"))


@pytest.mark.parametrize("program", ["shared.cli.start", "mlx_train", "cuda_train"])
def test_ctrl_c_is_one_line_while_the_command_line_is_imported(program: str) -> None:
    pressed = """
import os, runpy, signal, sys

class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == "shared.engine.ranks":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Pressed())
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
    run = (
        "from shared.cli.start import main\nmain()"
        if "." in program
        else f"runpy.run_module({program!r}, None, '__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", pressed + run], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S
    )
    assert (done.returncode, done.stderr) == (130, "bytetwin: interrupted\n")
