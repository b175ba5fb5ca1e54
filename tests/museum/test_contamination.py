"""Held-out text that is trained on fails the row `overlap`, in preflight and in the audit of every command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from data.making import make_missing
from shared.cli.main import main
from shared.preflight.data_rows import overlap_row
from shared.spec import load_spec
from tests.datasets import documents_of, write_dataset
from tests.museum.contamination import a_twentieth_of_heldout, heldout_in_training, heldout_with_other_white_space

Documents = list[bytes]
Contaminate = Callable[[Sequence[bytes], Sequence[bytes]], Documents]
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
    return documents_of("builtin", "train")[::5], documents_of("builtin", "heldout")


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
@pytest.mark.usefixtures("datasets")
def test_held_out_text_that_is_trained_on(
    builtin: tuple[Documents, Documents], contaminate: Contaminate, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset("planted", train=contaminate(*builtin), heldout=builtin[1])
    small = ("--max-symbols", "500", "--set", "model.num_layers=1")
    status = main(["audit", "tiny", "--json", "--engine", "numpy", *DATA, *small])
    checks = json.loads(capsys.readouterr().out)["checks"]
    check = next(check for check in checks if check["name"] == "overlap")
    row = overlap_row(SimpleNamespace(spec=load_spec("tiny", DATA[1::2])))  # type: ignore[arg-type]
    assert row.values["measured"] == check["measured"] and row.how == check["detail"]
    if share == 0.0:
        assert (status, row.verdict) == (0, "go") and check["measured"] < 0.002
    else:
        # By bytes or by documents, whichever is more; documents differ in length.
        assert (status, row.verdict) == (1, "no-go") and 0.6 * share < check["measured"] <= min(1.0, 4 * share)
