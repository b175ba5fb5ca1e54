"""Sketches: the same for the same text however it comes, nested by level, and kept beside their dataset."""

from __future__ import annotations

import argparse
import inspect
import tarfile
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import sketch as sketches
from data.datasets import open_split, verify_dataset
from data.folders import datasets_root
from data.sketch import WINDOW_BYTES, Sketch, SketchBuilder, fold, known, run_hashes, sketch_documents
from data.sketch_file import read_sketch, sketch_path
from data.writer import DatasetWriter
from shared.spec import VocabularySpec
from tests.datasets import BYTES, full_disk, write_dataset
from tests.token_text import documents as token_documents
from tests.token_text import small_tokenizer

pytestmark = pytest.mark.usefixtures("datasets")


def words(rng: np.random.Generator, count: int) -> bytes:
    """Text of words that no other text has."""
    return rng.bytes(4 * count).hex(" ", 4).encode()


def same(one: Sketch, other: Sketch) -> bool:
    arrays = ("documents", "num_bytes", "counts", "windows")
    return one.level == other.level and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


def by_definition(documents: list[bytes], level: int) -> list[set[int]]:
    """The windows that a level keeps of each document."""
    kept = []
    for document in documents:
        hashes = run_hashes(np.frombuffer(fold(document), np.uint8), WINDOW_BYTES).tolist()
        kept.append({value for value in hashes if value >> (64 - level) == 0})
    return kept


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=6),
    cut=st.integers(5, 200),
    chunk=st.sampled_from([1, 100, 1 << 20]),
    max_windows=st.sampled_from([20, 1 << 20]),
)
def test_a_sketch_is_what_it_is_defined_as_however_the_text_is_cut(
    seed: int, lengths: list[int], cut: int, chunk: int, max_windows: int
) -> None:
    rng = np.random.default_rng(seed)
    documents = [words(rng, length) for length in lengths]
    documents.append(documents[0] * 3)  # Windows that a document has several times, and shares with another.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketches, "CHUNK_BYTES", chunk)
        builder = SketchBuilder(level=3, max_windows=max_windows)
        for document in documents:
            for start in range(0, len(document), cut):
                builder.write(document[start : start + cut])
            builder.end_document()
        built = builder.finish()
    expected = by_definition(documents, 3)
    level = 3
    while sum(map(len, expected)) > max_windows:
        level += 1
        expected = by_definition(documents, level)
    assert built.level == level
    parts = np.split(built.windows, np.cumsum(built.counts)[:-1])
    assert [len(part) for part in parts] == [len(kept) for kept in expected]
    assert [set(part.tolist()) for part in parts] == expected
    assert built.num_bytes.tolist() == [len(fold(document)) for document in documents]
    assert (built.documents[0] == built.documents[-1]) == (len(fold(documents[0])) == 0)
    assert same(built.part(1, 2), Sketch(level, *_arrays_of(built, 1, 2)))


def _arrays_of(sketch: Sketch, first: int, count: int) -> tuple[np.ndarray, ...]:
    chosen = (sketch.owners >= first) & (sketch.owners < first + count)
    rows = slice(first, first + count)
    return sketch.documents[rows], sketch.num_bytes[rows], sketch.counts[rows], sketch.windows[chosen]


def test_a_higher_level_is_what_a_lower_one_keeps_of_it() -> None:
    documents = [words(np.random.default_rng(seed), 500) for seed in range(5)]
    low, high = SketchBuilder(level=2), SketchBuilder(level=6)
    for builder in (low, high):
        for document in documents:
            builder.write(document)
            builder.end_document()
    assert same(low.finish().at_level(6), high.finish())


def test_windows_are_chosen_evenly() -> None:
    """One in 128, of source text as of noise: within six standard deviations."""
    source = b"".join(Path(module.__file__).read_bytes() for module in (argparse, inspect, tarfile, typing))
    for text in (source, words(np.random.default_rng(0), 50_000)):
        kept = len(sketch_documents([text]).windows)
        distinct = len(np.unique(run_hashes(np.frombuffer(fold(text), np.uint8), WINDOW_BYTES)))
        assert abs(kept - distinct / 128) < 6 * np.sqrt(distinct / 128)


def test_white_space_and_case_are_folded_and_nothing_else() -> None:
    document = b"A Line of text,\n\tand another that is long enough to have a few windows of its own.\r\n" * 3
    changed = b"  " + document.upper().replace(b" ", b"\n \v\f")
    assert same(sketch_documents([document]), sketch_documents([changed]))
    assert not same(sketch_documents([document]), sketch_documents([document.replace(b",", b";")]))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 60), max_size=40), st.lists(st.integers(0, 60), max_size=40))
def test_known_hashes(hashes: list[int], among: list[int]) -> None:
    found = known(np.array(hashes, np.uint64) << np.uint64(20), np.array(among, np.uint64) << np.uint64(20))
    assert found.tolist() == [value in among for value in hashes]


# Kept beside the dataset.


def test_every_dataset_has_the_sketch_of_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [words(np.random.default_rng(seed), 300) for seed in range(3)]
    write_dataset(train=documents)
    monkeypatch.setattr("data.sketch_file.sketch_documents", None)  # Nothing is made again.
    assert same(open_split("toy", "train", BYTES).sketch(), sketch_documents(documents))


def test_tokens_have_the_sketch_of_their_text() -> None:
    tokenizer, texts = small_tokenizer("identity"), [" ".join(token_documents(30, seed)) for seed in range(4)]
    options = {"tokenizer": tokenizer.content, "vocab_size": tokenizer.vocab_size}
    with DatasetWriter(datasets_root() / "toy", **options) as writer:  # type: ignore[arg-type]
        for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
            writer.add_tokens("train", tokens, text.encode())
        writer.finish("a test")
    vocabulary = VocabularySpec(kind="tokens", vocab_size=tokenizer.vocab_size, tokenizer=tokenizer.sha256)
    stream = open_split("toy", "train", vocabulary)
    expected = sketch_documents([text.encode() for text in texts])
    assert same(stream.sketch(), expected) and expected.counts.sum() > 0
    assert same(stream.sample_documents(200, 0).sketch(), sketch_documents(stream.sample_documents(200, 0).documents()))
    sketch_path(datasets_root() / "toy", "train").unlink()
    assert same(stream.sketch(), expected)


@pytest.mark.parametrize("damage", ["missing", "of other text", "flipped", "another level", "cut", "no sketch at all"])
def test_what_is_not_the_sketch_of_the_text_is_made_again(damage: str) -> None:
    documents = [words(np.random.default_rng(seed), 300) for seed in range(3)]
    other = sketch_path(write_dataset("other", train=documents[:2]), "train").read_bytes()
    path = sketch_path(write_dataset(train=documents), "train")
    good = path.read_bytes()
    changes = {
        "of other text": other,
        "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "another level": good.replace(b'"level":"7"', b'"level":"8"'),
        "cut": good[:-8],
        "no sketch at all": b"",
    }
    path.unlink()
    if damage != "missing":
        assert changes[damage] != good
        path.write_bytes(changes[damage])
    stream = open_split("toy", "train", BYTES)
    problems = verify_dataset("toy")
    assert (problems == []) if damage == "missing" else ("train_sketch.safetensors: " in problems[0])
    assert same(stream.sketch(), sketch_documents(documents))
    made = read_sketch(path, stream.sha256)
    assert made is not None and same(made, sketch_documents(documents)) and verify_dataset("toy") == []
    assert read_sketch(path, "0" * 64) is None


def test_a_folder_that_cannot_be_written_gets_its_sketch_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [words(np.random.default_rng(0), 300)]
    path = sketch_path(write_dataset(train=documents), "train")
    path.unlink()

    monkeypatch.setattr("data.sketch_file.write_atomically", full_disk)
    assert same(open_split("toy", "train", BYTES).sketch(), sketch_documents(documents))
    assert not path.exists()
