"""`compress`, `decompress` and `prove`: the file comes back or nothing is written, and every refusal is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.coding.container import FIXED_BYTES
from tests import ROOT
from tests.command_line import CommandLine

GOLDEN = ROOT / "tests" / "golden" / "2026-11-26"
MODEL, OTHER = GOLDEN / "bytes" / "artifact.btw", GOLDEN / "best.btw"
TEXT = b"any bytes \x00\xff"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BYTETWIN_DATASETS", str(GOLDEN / "datasets"))
    Path("a.bin").write_bytes(TEXT)


def test_a_file_comes_back(cli: CommandLine) -> None:
    done = cli.document("compress", "a.bin", "--model", MODEL)
    assert done["bytes"] == Path("a.bin.btz").stat().st_size == FIXED_BYTES + 2 + done["payload_bytes"]
    assert done["text_bytes"] == len(TEXT)
    assert cli("decompress", "a.bin.btz", "--model", MODEL, "--output", "b", "--engine", "numpy").status == 0
    assert Path("b").read_bytes() == TEXT
    Path("a.bin").unlink()
    assert cli.document("decompress", "a.bin.btz", "--model", MODEL)["file"] == "a.bin"
    assert Path("a.bin").read_bytes() == TEXT


def test_an_empty_file_comes_back(cli: CommandLine) -> None:
    Path("empty").touch()
    assert cli("compress", "empty", "--model", MODEL).status == 0
    assert cli("decompress", "empty.btz", "--model", MODEL, "--output", "again").status == 0
    assert Path("again").read_bytes() == b""


def test_prove_puts_file_and_score_side_by_side(cli: CommandLine) -> None:
    done = cli("prove", MODEL, "--bytes", 80, "--engine", "numpy", "--output", "proof.json")
    assert done.status == 0 and "passed: decompressed to the same symbols and bytes" in done.out
    found = cli.document("prove", MODEL, "--bytes", 80, "--engine", "numpy")
    assert found["verified"] and found["text_bytes"] <= 80 and Path("proof.json").is_file()
    assert found["score_bpb"] == pytest.approx(found["float64_bpb"], rel=1e-12)


def test_nothing_is_written_that_is_not_right(cli: CommandLine) -> None:
    cli("compress", "a.bin", "--model", MODEL)
    before = sorted(Path().iterdir())
    content = bytearray(Path("a.bin.btz").read_bytes())
    refused = [cli.refusal("decompress", "a.bin.btz", "--model", OTHER, "--output", "b")]
    assert "artifact whose SHA-256 begins with" in refused[0]
    content[-1] ^= 1
    Path("a.bin.btz").write_bytes(content)
    refused.append(cli.refusal("decompress", "a.bin.btz", "--model", MODEL, "--output", "b"))
    assert "damaged" in refused[1]
    refused.append(cli.refusal("decompress", "a.bin", "--model", MODEL, "--output", "b"))
    assert "not a file of `bytetwin compress`" in refused[2]
    assert sorted(Path().iterdir()) == before and all("a.bin" in line for line in refused)


def test_no_file_is_overwritten_that_was_not_named(cli: CommandLine) -> None:
    Path("a.bin.btz").write_bytes(b"mine")
    assert "--output a.bin.btz overwrites it" in cli.refusal("compress", "a.bin", "--model", MODEL)
    assert Path("a.bin.btz").read_bytes() == b"mine"
    assert "is the input" in cli.refusal("compress", "a.bin", "--model", MODEL, "--output", "a.bin")
    assert cli("compress", "a.bin", "--model", MODEL, "--output", "a.bin.btz").status == 0
    assert "--output a.bin overwrites it" in cli.refusal("decompress", "a.bin.btz", "--model", MODEL)
    Path("coded").write_bytes(Path("a.bin.btz").read_bytes())
    assert "--output says what to write" in cli.refusal("decompress", "coded", "--model", MODEL)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["compress", "nowhere", "--model", MODEL], "nowhere: no such file"),
        (["compress", ".", "--model", MODEL, "--output", "x"], "is a directory"),
        (["compress", "a.bin", "--model", "none.btw"], "no artifact file"),
        (["compress", "a.bin", "--model", GOLDEN / "tokens" / "artifact.btw"], "a.bin: not UTF-8 at byte 11"),
        (["prove", MODEL, "--bytes", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_line(cli: CommandLine, words: list[str], told: str) -> None:
    assert told in cli.refusal(*words)
    assert [path.name for path in Path().iterdir()] == ["a.bin"]
