"""Files are whole or absent, and what a killed writer leaves behind goes with the next one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.files import remove_temporaries, replacing, replacing_folder, write_atomically
from shared.parsing import MAX_DEPTH, parse_json, parse_tensors, parse_toml
from tests.processes import started

STOP_WHILE_WRITING = """
import sys
from pathlib import Path
from shared.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_writer_left_goes_with_the_next_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "artifact.btw"
    (tmp_path / ".artifact.btw.4242.tmp").touch()
    (tmp_path / ".artifact.btw.mine.tmp").mkdir()
    (tmp_path / ".other.tmp").symlink_to(tmp_path / "kept")
    (tmp_path / "kept").touch()
    with started([sys.executable, "-c", STOP_WHILE_WRITING, str(path)], stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        write_atomically(path, b"whole")
        remove_temporaries(tmp_path)
        (writing,) = set(names(tmp_path)) - {".artifact.btw.mine.tmp", ".other.tmp", "artifact.btw", "kept"}
        assert (tmp_path / writing).read_bytes() == b"half" and path.read_bytes() == b"whole"
        process.kill()
        process.wait()
        write_atomically(path, b"newer")
    assert names(tmp_path) == [".artifact.btw.mine.tmp", ".other.tmp", "artifact.btw", "kept"]


def test_no_link_is_followed_and_no_file_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever guesses the name of the temporary file is still not written to."""
    monkeypatch.setattr("shared.files.secrets.token_hex", lambda size: "guessed")
    target, trap = tmp_path / "target", tmp_path / ".file.guessed.tmp"
    target.write_bytes(b"untouched")
    trap.symlink_to(target)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file", b"content")
    assert target.read_bytes() == b"untouched" and not (tmp_path / "file").exists()


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target, link, loop = tmp_path / "target", tmp_path / "link", tmp_path / "loop"
    target.write_bytes(b"untouched")
    link.symlink_to(target)
    loop.symlink_to(loop)
    for path in (link, loop):
        write_atomically(path, b"content")
        assert path.read_bytes() == b"content" and not path.is_symlink()
    assert target.read_bytes() == b"untouched"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_nothing_but_a_file_is_replaced(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "out"
    make(path)
    mode = path.lstat().st_mode
    with pytest.raises(OSError, match="out"):
        write_atomically(path, b"content")
    assert path.lstat().st_mode == mode and names(tmp_path) == ["out"]


def test_a_write_that_ends_early_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    real = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: real(self, content[:3]))
    with pytest.raises(OSError, match="only 3 of 7 bytes were written"):
        write_atomically(path, b"content")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_an_error_in_a_folder_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, replacing_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "out") and names(tmp_path) == []


def test_no_folder_is_made_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(NotADirectoryError) as caught, replacing_folder(folder):
            pass
        assert caught.value.filename == str(folder.parent) and names(tmp_path) == ["file"]


def test_long_names_and_names_that_are_not_utf_8_are_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127, os.fsdecode(b"caf\xe9")):
        try:
            (tmp_path / name).touch()
        except OSError:
            continue  # macOS has no such name.
        with replacing(tmp_path / name) as temporary:
            temporary.write_bytes(b"content")
        assert (tmp_path / name).read_bytes() == b"content"


DEEP = MAX_DEPTH + 1


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_json, "[" * 200_000, "nested too deeply"),
        (parse_json, "[" * DEEP + "]" * DEEP, "nested too deeply"),
        (parse_json, "9" * 5000, "integer of 5000 digits"),
        (parse_json, '{"x": NaN}', "number NaN"),
        (parse_json, "-Infinity", "number -Infinity"),
        (parse_json, "1e999", "number 1e999"),
        (parse_json, b"\xff", "not UTF-8"),
        (parse_json, "{", "not JSON"),
        (parse_toml, "x = " + "[" * 3000, "nested too deeply"),
        (parse_toml, "x = " + "[" * DEEP + "]" * DEEP, "nested too deeply"),
        (parse_toml, "a." * 3000 + "b = 1", "nested too deeply"),
        (parse_toml, "x = " + "9" * 5000, "integer that is too long"),
        (parse_tensors, b"", "deserializing"),
        (parse_tensors, b"\x08" + bytes(7) + b"{\x1b}     ", "deserializing"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_whatever_cannot_be_parsed_is_one_kind_of_error(
    parse: Callable[[str | bytes], object], text: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


def test_what_can_be_parsed_is_what_the_libraries_say() -> None:
    assert parse_json('{"a": [1, 2.5, null, true, "x"]}') == {"a": [1, 2.5, None, True, "x"]}
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH) and parse_toml("a.b = 1") == {"a": {"b": 1}}
