"""Held-out text that is trained on fails the row `overlap`, in preflight and in the audit of every command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.datasets import make_missing, open_split
from data.folders import datasets_root
from data.writer import DatasetWriter
from shared.cli.main import main
from shared.preflight import Row
from shared.preflight.data_rows import overlap_row
from shared.spec import VocabularySpec, load_spec
from tests.museum.contamination import (
    a_twentieth_of_heldout,
    heldout_in_training,
    heldout_with_other_white_space,
)

Documents = list[bytes]
BYTES = VocabularySpec()
DATA = ("--set", "data.train=planted", "--set", "data.heldout=planted")


def honest(training: Sequence[bytes], heldout: Sequence[bytes]) -> Documents:
    return list(training)


def copied_but_for_a_word(training: Sequence[bytes], heldout: Sequence[bytes]) -> Documents:
    """Every copy has one word of its own in the middle, so that none of them is whole."""
    copies = (document[: len(document) // 2] + b" sic " + document[len(document) // 2 :] for document in heldout[::20])
    return [*training, *copies]


def cut_into_other_documents(training: Sequence[bytes], heldout: Sequence[bytes]) -> Documents:
    text = b"\n".join(heldout)
    return [*training, *(text[start : start + 3000] for start in range(0, len(text), 3000))]


@pytest.fixture(scope="module")
def builtin() -> tuple[Documents, Documents]:
    """A fifth of the built-in training text, and all of its held-out text."""
    make_missing("builtin")
    training, heldout = (list(open_split("builtin", split, BYTES).documents()) for split in ("train", "heldout"))
    return training[::5], heldout


@pytest.fixture
def plant(builtin: tuple[Documents, Documents], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a dataset `planted` with the training text that a function gives."""
    monkeypatch.setenv("BYTETWIN_DATASETS", str(tmp_path / "datasets"))

    def write(contaminate: Callable[[Sequence[bytes], Sequence[bytes]], Documents]) -> None:
        with DatasetWriter(datasets_root() / "planted") as writer:
            for document in contaminate(*builtin):
                writer.add("train", [document])
            for document in builtin[1]:
                writer.add("heldout", [document])
            writer.finish("planted")

    return write


def audited(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    small = ("--max-symbols", "500", "--set", "model.num_layers=1")
    status = main(["audit", "tiny", "--json", "--engine", "numpy", *DATA, *small])
    checks = json.loads(capsys.readouterr().out)["checks"]
    return status, next(check for check in checks if check["name"] == "overlap")


def asked() -> Row:
    return overlap_row(SimpleNamespace(spec=load_spec("tiny", DATA[1::2])))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("contaminate", "share"),
    [
        (honest, 0.0),
        (heldout_in_training, 1.0),
        (heldout_with_other_white_space, 1.0),
        (a_twentieth_of_heldout, 0.05),
        (copied_but_for_a_word, 0.05),
        (cut_into_other_documents, 1.0),
    ],
)
def test_held_out_text_that_is_trained_on(
    plant: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    contaminate: Callable[[Sequence[bytes], Sequence[bytes]], Documents],
    share: float,
) -> None:
    plant(contaminate)
    status, check = audited(capsys)
    row = asked()
    assert row.values["measured"] == check["measured"] and row.how == check["detail"]
    if share == 0.0:
        assert (status, row.verdict) == (0, "go") and check["measured"] < 0.002
    else:
        # By bytes or by documents, whichever is more; documents differ in length.
        assert (status, row.verdict) == (1, "no-go") and 0.6 * share < check["measured"] <= min(1.0, 4 * share)
