"""A Mac stays awake while it trains; macOS and its caffeinate are stand-ins."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from shared.training.awake import awake
from tests.processes import wait_until


@pytest.fixture
def caffeinate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in which a stand-in of caffeinate writes its process id and arguments; it runs until it is ended."""
    written = tmp_path / "written"
    program = tmp_path / "caffeinate"
    program.write_text(f'#!/bin/sh\necho "$$ $*" > {written}.part\nmv {written}.part {written}\nexec sleep 600\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "darwin")
    return written


def test_a_mac_stays_awake_for_as_long_as_it_trains(caffeinate: Path) -> None:
    with awake():
        wait_until(caffeinate.exists, "caffeinate has started")
        process, *arguments = caffeinate.read_text().split()
        assert arguments == ["-i", "-m", "-w", str(os.getpid())]
        os.kill(int(process), 0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


def test_a_mac_without_caffeinate_trains_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "darwin")
    with awake():
        pass


def test_other_systems_start_nothing(caffeinate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("starts a process"))
    with awake():
        pass
