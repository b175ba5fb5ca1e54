"""A script that was built before is taken again, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.script import memory

BUILT = b"co\nde\0", ["numpy==1", "torch==2"]


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "FOLDER", tmp_path / "__pycache__")


def test_what_is_kept_comes_back_and_under_no_other_key():
    key, other = memory.source_hash("torch"), memory.source_hash("mlx")
    memory.remember(key, *BUILT)
    assert memory.recall(key) == BUILT
    assert memory.recall(other) is None
    memory.remember(other, b"", [])
    assert memory.recall(other) == (b"", []) and memory.recall(key) == BUILT


def test_a_damaged_file_is_not_taken():
    key = memory.source_hash("torch")
    memory.remember(key, *BUILT)
    (path,) = memory.FOLDER.iterdir()
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[:40] + b"?" + content[41:]):
        path.write_bytes(damaged)
        assert memory.recall(key) is None


def test_a_changed_source_has_another_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for package in memory.PACKAGES:
        (tmp_path / package).mkdir()
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    source = tmp_path / memory.PACKAGES[0] / "a.py"
    keys = set()
    for text in ("x = 1", "x = 2", "x = 1\n"):
        source.write_text(text)
        keys.add(memory.source_hash(""))
    source.rename(source.with_name("b.py"))
    assert len({*keys, memory.source_hash("")}) == 4


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path: Path):
    memory.FOLDER.write_text("a file")
    memory.remember("0" * 64, *BUILT)
    assert memory.recall("0" * 64) is None


def test_only_the_last_few_are_kept():
    for index in range(memory.MOST_KEPT + 3):
        memory.remember(f"{index:064}", *BUILT)
    assert len(list(memory.FOLDER.iterdir())) <= memory.MOST_KEPT + 1
