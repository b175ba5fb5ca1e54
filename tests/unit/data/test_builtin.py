"""The built-in corpus: English, deterministic, and honest about what is held out."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from data import builtin
from data.builtin import BuiltinCorpus, build_corpus
from data.datasets import load_manifest, verify_dataset
from shared.errors import DataError
from tests.datasets import documents_of
from tests.processes import run_python


@pytest.fixture(scope="module")
def corpus() -> BuiltinCorpus:
    return build_corpus()


def test_sizes(corpus: BuiltinCorpus) -> None:
    train_bytes, heldout_bytes = (sum(len(text.encode()) for text in side) for side in (corpus.train, corpus.heldout))
    assert train_bytes > 2_000_000
    assert 0.05 < heldout_bytes / (train_bytes + heldout_bytes) < 0.1
    assert heldout_bytes > 190_000
    assert len(corpus.heldout) > 50
    assert max(len(text) for text in corpus.heldout) < 0.12 * heldout_bytes


def test_nothing_long_stands_on_both_sides(corpus: BuiltinCorpus) -> None:
    window = builtin.SHARED_WINDOW_BYTES
    heldout = {text[at : at + window] for text in corpus.heldout for at in range(len(text) - window + 1)}
    assert len(heldout) > 150_000
    shared = (text[at : at + window] for text in corpus.train for at in range(len(text) - window + 1))
    assert next((passage for passage in shared if passage in heldout), None) is None


def test_text_is_english(corpus: BuiltinCorpus) -> None:
    for side in (corpus.train, corpus.heldout):
        text = "".join(side)
        assert len(re.findall(r"[^\W\d_]|\s", text)) > 0.85 * len(text)
        assert text.count(" the ") > 4 * len(text) / 1000
        assert len(text.encode("ascii", "ignore")) > 0.999 * len(text)
        assert all(len(document.encode()) >= builtin.MIN_DOCUMENT_BYTES for document in side)


@pytest.mark.slow
@pytest.mark.usefixtures("datasets")
def test_another_process_makes_the_same_dataset(corpus: BuiltinCorpus) -> None:
    program = (
        "from data.datasets import open_split, load_manifest; from shared.spec import VocabularySpec\n"
        "print(open_split('builtin', 'heldout', VocabularySpec()).num_bytes, load_manifest('builtin').sha256)"
    )
    printed = run_python(program, PYTHONHASHSEED="77")
    heldout, manifest = [text.encode() for text in corpus.heldout], load_manifest("builtin")
    assert documents_of("builtin", "train") == [text.encode() for text in corpus.train]
    assert documents_of("builtin", "heldout") == heldout
    assert printed.split() == [str(sum(map(len, heldout))), manifest.sha256]
    assert verify_dataset("builtin") == []
    assert ".".join(map(str, sys.version_info[:3])) in manifest.source


def test_passages_of_a_module() -> None:
    source = '''#!/usr/bin/env python
# This comment is long enough and reads as prose, so it is part of the text.
"""The docstring of this module is kept, as it
is of two lines."""

# for x in y: print(x[0], z(1)); a = b + c * (d - e) ** 2 // f
TEXT = """
# This line is inside of a string and so it is not a comment at all.
"""


class Thing:
    """Short."""

    def method(self):
        """
        This is the docstring of a method
            with an indented line of text.
        """
'''
    nodes = builtin._multiline_nodes(ast.parse(source))
    assert [text for _, text in sorted(builtin._docstrings(nodes) + builtin._comments(source, nodes))] == [
        "This comment is long enough and reads as prose, so it is part of the text.",
        "The docstring of this module is kept, as it\nis of two lines.",
        "This is the docstring of a method\n    with an indented line of text.",
    ]


def test_a_python_without_sources_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_library_folder", lambda: tmp_path)
    with pytest.raises(DataError, match=r"too few library sources .*`bytetwin data import`"):
        build_corpus()
