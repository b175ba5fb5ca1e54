"""docs/first-run.ipynb runs from top to bottom, and what is stored in it is what it prints."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.datasets import write_dataset

NOTEBOOK = ROOT / "docs" / "first-run.ipynb"
# Digits depend on the machine and on the text, generated text on both.
DIGITS = re.compile(r"\d[\d.,]*")


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [{key: cell[key] for key in ("source", "outputs")} for cell in cells if cell["cell_type"] == "code"]


def stored(cell: dict[str, Any]) -> str:
    return "".join("".join(output["text"]) for output in cell["outputs"])


@pytest.mark.slow
def test_the_notebook_runs_and_prints_what_is_in_it(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small text in place of that of Python's documentation, and with fewer steps."""
    text = [f"document {index}: returns the number of bytes, {index * 7} of them\n" * 9 for index in range(90)]
    encoded = [one.encode() for one in text]
    write_dataset("builtin", train=encoded[:70], heldout=encoded[70:])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in code_cells():
        source = "".join(cell["source"]).replace("training.steps=60", "training.steps=6")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(source, str(NOTEBOOK), "exec"), names)
        assert bool(printed.getvalue()) == bool(stored(cell)), source
        if "generate" in source or "confidence" in source:
            continue
        found, expected = (DIGITS.sub("#", one) for one in (printed.getvalue(), stored(cell)))
        assert found == expected, source
    assert (tmp_path / "runs" / "first" / "report.html").exists()


def test_the_notebook_says_nothing_of_the_machine_it_ran_on() -> None:
    content = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(?:tmp|home|root|work|Users)\b", content)
    assert all(output["name"] == "stdout" for cell in code_cells() for output in cell["outputs"])
