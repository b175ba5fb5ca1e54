"""Arguments of `bytetwin preflight` that are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.cli.main import main
from shared.preflight import ROWS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--force", "clocks"], "--force clocks: no such row; rows: parity, causality,"),
        (["--ranks", "3"], "--ranks 3: must be a divisor of the 8 windows"),
        (["--ranks", "-1"], "--ranks -1: must be a divisor"),
        (["--ranks", "0"], "--ranks 0: must be a divisor"),
        (["--ranks", "128"], "--ranks 128: at most 64"),
        (["--ranks", "4", "--nodes", "3"], "--nodes 3: must be a divisor of the 4 ranks"),
        (["--nodes", "0", "--ranks", "4"], "--nodes 0: must be 1 or more"),
        (["--fit", "absent.json"], "--fit absent.json: cannot be read"),
        (["--output", "absent/file.json"], "the folder absent does not exist"),
        (["--set", "model.depth=3"], "unknown key model.depth"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", "tiny", "--engine", "torch", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object"),
        ('{"c": 1, "a": 2}', "alpha = None"),
        ('{"c": "1", "a": 2, "alpha": 0.1}', "c = '1'"),
        ('{"c": 1, "a": NaN, "alpha": 0.1}', "has the number NaN, which is not finite"),
        ('{"c": true, "a": 1, "alpha": 0.1}', "c = True"),
        ('{"c": 1, "a": 2, "alpha": 0}', "alpha must be above 0"),
    ],
)
def test_a_bad_fit_is_one_line(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fit.json").write_text(text)
    assert main(["preflight", "tiny", "--fit", str(tmp_path / "fit.json")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


def test_help_lists_the_rows_and_a_bad_price_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["preflight", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in ROWS)
    for price in ("-2", "nan"):
        assert main(["preflight", "tiny", "--price", price]) == 2
        assert "must be a number" in capsys.readouterr().err
