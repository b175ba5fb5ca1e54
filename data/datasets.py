"""Datasets by name: their streams and tokenizers; checking every byte."""

from __future__ import annotations

from data.folders import dataset_folder
from data.making import make_missing
from data.manifest import Manifest, read_manifest
from data.opening import existing_manifest, open_existing, vocabulary_of, wrong_file
from data.sketch_file import read_sketch, sketch_path
from data.stream import SymbolStream
from data.token_stream import TokenStream
from data.tokenizer import Tokenizer, read_tokenizer
from shared.errors import DataError
from shared.spec import Spec, VocabularySpec


def load_manifest(name: str) -> Manifest:
    """The manifest of a dataset; a built-in one is made first if need be. Raises DataError."""
    make_missing(name)
    return existing_manifest(name)


def open_split(name: str, split: str, vocabulary: VocabularySpec) -> SymbolStream:
    """The stream of a split (`train` or `heldout`) as symbols of a vocabulary. Raises DataError."""
    make_missing(name)
    return open_existing(name, split, vocabulary)


def verify_dataset(name: str) -> list[str]:
    """Read every byte of a dataset; returns what is wrong, one line each, and [] if nothing is.

    Raises DataError only if there is no such dataset.
    """
    folder = dataset_folder(name)
    if not folder.is_dir():
        load_manifest(name)  # Makes the built-in corpus, or says which datasets there are.
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        return [str(error)]
    problems = []
    for split, entry in manifest.splits.items():
        for file in [*entry.shards, entry.document_starts, *([manifest.tokenizer] if manifest.tokenizer else [])]:
            problem = wrong_file(folder / file.file, file)
            if problem:
                problems.append(problem)
        if not problems:
            try:
                _check_text(open_split(name, split, vocabulary_of(manifest)))
            except DataError as error:
                problems.append(str(error))
        path = sketch_path(folder, split)
        if path.exists() and read_sketch(path, entry.sha256) is None:
            problems.append(f"{path}: damaged, or not the sketch of this text; it is made again when it is next needed")
    return problems


def tokenizer_of_dataset(name: str) -> Tokenizer:
    """The copy of its tokenizer that a dataset carries. Raises DataError if it holds bytes, or the copy is damaged."""
    manifest = load_manifest(name)
    if manifest.tokenizer is None:
        raise DataError(f"dataset {name!r} holds bytes, not tokens; `bytetwin tokenizer encode` makes them")
    path = dataset_folder(name) / manifest.tokenizer.file
    tokenizer = read_tokenizer(path)
    if tokenizer.sha256 != manifest.vocabulary:
        raise DataError(f"{path}: SHA-256 {tokenizer.sha256}; the manifest says {manifest.vocabulary}")
    return tokenizer


def bind_tokenizer(spec: Spec) -> Spec:
    """The spec with the tokenizer of its training text written into it, where it reads tokens and names none.

    From then on its spec_id is that of a model of this tokenizer. Commands call it once, when they read a spec.
    Raises DataError if the dataset is missing.
    """
    if not spec.vocabulary.reads_tokens or spec.vocabulary.tokenizer:
        return spec
    tokenizer = tokenizer_of_dataset(spec.data.train).sha256
    return spec.model_copy(update={"vocabulary": spec.vocabulary.model_copy(update={"tokenizer": tokenizer})})


def _check_text(stream: SymbolStream) -> None:
    """Raise DataError for a document that is not UTF-8, or tokens that count other bytes than they decode to."""
    if isinstance(stream, TokenStream):
        stream.check_accounting()
    for index, document in enumerate(stream.documents()):
        try:
            document.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{stream.name}: document {index} is not UTF-8 at its byte {error.start}") from None
