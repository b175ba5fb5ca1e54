"""Datasets by name: where they are, what there is, opening a split, checking every byte.

A dataset is a folder `datasets_root()/NAME` with `manifest.json`, byte shards and a file of document
starts (little-endian int64) per split. The built-in corpus is made when it is first opened.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import builtin
from data.manifest import FILE_NAME, SPLITS, FileEntry, Manifest, SplitEntry, read_manifest
from data.shards import BYTES_VERSION, HEADER_BYTES, TOKENS_VERSION, read_header, read_shard
from data.stream import ByteText, JoinedShards, SymbolStream
from data.token_bytes import load_token_bytes
from data.token_stream import Stream, TokenStream
from data.writer import DatasetWriter
from shared.errors import DataError
from shared.spec import VocabularySpec

ROOT_VARIABLE = "BYTETWIN_DATASETS"
BUILTIN = builtin.NAME
# The folder beside the datasets in which trained tokenizers lie; no dataset has this name.
TOKENIZERS = "tokenizers"

# The built-in corpus in tokens of a tokenizer of this size, trained on it.
_BUILTIN_TOKENS = re.compile(rf"{BUILTIN}-sp([1-9][0-9]{{2,4}})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def datasets_root() -> Path:
    """The folder of all datasets: $BYTETWIN_DATASETS, or `data/datasets` next to the code."""
    configured = os.environ.get(ROOT_VARIABLE)
    return Path(configured) if configured else Path(__file__).resolve().parent / "datasets"


def dataset_folder(name: str) -> Path:
    """The folder of a dataset, existing or not. Raises DataError for a name that is no plain file name."""
    if not _NAME.fullmatch(name):
        raise DataError(f"dataset name {name!r}: use letters, digits, '.', '_', '-', first a letter or digit")
    if name == TOKENIZERS:
        raise DataError(f"dataset name {name!r}: there the tokenizers are kept; choose another")
    return datasets_root() / name


def dataset_names() -> list[str]:
    """Names of the datasets on disk, sorted."""
    root = datasets_root()
    if not root.is_dir():
        return []
    return sorted(path.parent.name for path in root.glob(f"*/{FILE_NAME}") if _NAME.fullmatch(path.parent.name))


def load_manifest(name: str) -> Manifest:
    """The manifest of a dataset; the built-in corpus is made first if need be. Raises DataError."""
    folder = dataset_folder(name)
    if not folder.is_dir():
        if match := _BUILTIN_TOKENS.fullmatch(name):
            importlib.import_module("data.builtin_tokens").build_builtin_tokens(name, int(match[1]))
        elif name != BUILTIN:
            known = ", ".join(sorted({BUILTIN, *dataset_names()}))
            raise DataError(
                f"no dataset {name!r} in {datasets_root()}; there are: {known}; "
                "`bytetwin data import` or `bytetwin data download` adds one"
            )
        else:
            build_builtin()
    return read_manifest(folder)


def open_split(name: str, split: str, vocabulary: VocabularySpec) -> Stream:
    """The stream of a split (`train` or `heldout`) as symbols of a vocabulary.

    File sizes, headers and document starts are checked here, contents by `verify_dataset`. Raises
    DataError if the dataset or split is missing or damaged, or its symbols are not those of the vocabulary.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
    manifest = load_manifest(name)
    _check_vocabulary(manifest, vocabulary)
    entry = manifest.splits.get(split)  # type: ignore[call-overload]
    if entry is None:
        raise DataError(f"dataset {name!r} has no {split} split; it has: {', '.join(manifest.splits)}")
    folder = dataset_folder(name)
    version = BYTES_VERSION if manifest.tokenizer is None else TOKENS_VERSION
    shards = [_open_shard(folder, shard, version) for shard in entry.shards]
    if manifest.tokenizer is not None:
        return _token_stream(folder, manifest, f"{name}/{split}", entry, shards, vocabulary)
    text = ByteText(shards)
    if text.num_bytes != entry.total_bytes:
        raise DataError(
            f"{folder / FILE_NAME}: {split} shards hold {text.num_bytes} bytes, the manifest says {entry.total_bytes}"
        )
    starts = _open_document_starts(folder, entry, text.num_bytes)
    return SymbolStream(text, starts, vocabulary, name=f"{name}/{split}", sha256=entry.sha256)


def vocabulary_of(manifest: Manifest) -> VocabularySpec:
    """A vocabulary that reads the dataset: raw bytes, or the tokens of its tokenizer."""
    if manifest.tokenizer is None:
        return VocabularySpec()
    return VocabularySpec(kind="tokens", vocab_size=manifest.tokenizer.vocab_size, tokenizer=manifest.vocabulary)


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
            problem = _wrong_file(folder / file.file, file)
            if problem:
                problems.append(problem)
        if not problems:
            try:
                _check_text(open_split(name, split, vocabulary_of(manifest)))
            except DataError as error:
                problems.append(str(error))
    return problems


def build_builtin(
    *, replace: bool = False, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Manifest:
    """Make the built-in corpus; a process that loses a race for it uses the winner's. Raises DataError."""
    corpus = builtin.build_corpus(progress)
    folder = dataset_folder(BUILTIN)
    with DatasetWriter(folder, replace=replace, keep_existing=True) as writer:
        for text in corpus.train:
            writer.add("train", [text.encode()])
        for text in corpus.heldout:
            writer.add("heldout", [text.encode()])
        writer.finish(corpus.description)
    return read_manifest(folder)


def _check_vocabulary(manifest: Manifest, vocabulary: VocabularySpec) -> None:
    """Raise DataError unless the symbols of a dataset are those of a vocabulary."""
    name, tokenizer = manifest.name, manifest.tokenizer
    if tokenizer is None:
        if vocabulary.reads_tokens:
            raise DataError(
                f"dataset {name!r} holds bytes, the model reads tokens; `bytetwin tokenizer encode` makes them"
            )
        return
    if not vocabulary.reads_tokens:
        raise DataError(f"dataset {name!r} has the vocabulary {manifest.vocabulary}; {vocabulary.kind} reads bytes")
    if vocabulary.tokenizer != manifest.vocabulary:
        wanted = vocabulary.tokenizer[:16] or "none in particular: vocabulary.tokenizer is empty"
        raise DataError(
            f"dataset {name!r} has tokens of tokenizer {manifest.vocabulary[:16]}; the model reads {wanted}"
        )
    if vocabulary.size != tokenizer.vocab_size:
        raise DataError(
            f"dataset {name!r} has a tokenizer of {tokenizer.vocab_size} tokens; "
            f"vocabulary.vocab_size is {vocabulary.size}"
        )


def _token_stream(
    folder: Path,
    manifest: Manifest,
    name: str,
    entry: SplitEntry,
    shards: list[npt.NDArray[Any]],
    vocabulary: VocabularySpec,
) -> TokenStream:
    """The stream of a split of tokens, with the byte table of the tokenizer that the dataset carries."""
    assert manifest.tokenizer is not None
    problem = _wrong_file(folder / manifest.tokenizer.file, manifest.tokenizer)
    if problem:
        raise DataError(problem)
    tokens = JoinedShards(shards)
    return TokenStream(
        tokens,
        _open_document_starts(folder, entry, tokens.length),
        load_token_bytes(folder / manifest.tokenizer.file),
        vocabulary,
        name=name,
        sha256=entry.sha256,
        num_bytes=entry.total_bytes,
    )


def _open_shard(folder: Path, entry: FileEntry, version: int) -> npt.NDArray[Any]:
    """A shard that has the version of its dataset and the size its manifest gives, memory-mapped: `[count]`."""
    path = folder / entry.file
    header = read_header(path)
    if header.version != version:
        kind = "byte" if version == BYTES_VERSION else "token"
        raise DataError(f"{path}: shard version {header.version} in a {kind} dataset; allowed is {version}")
    num_bytes = HEADER_BYTES + header.num_symbols * header.dtype.itemsize
    if num_bytes != entry.bytes:
        raise DataError(f"{path}: {num_bytes} bytes; the manifest says {entry.bytes}")
    return read_shard(path)


def _open_document_starts(folder: Path, entry: SplitEntry, num_symbols: int) -> npt.NDArray[np.int64]:
    """The symbol at which each document begins, int64 `[num_documents]`, memory-mapped."""
    path = folder / entry.document_starts.file
    try:
        starts = np.memmap(path, dtype="<i8", mode="r")
    except FileNotFoundError:
        raise DataError(f"{path}: the file of document starts is missing") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read the document starts ({error})") from None
    if len(starts) != entry.num_documents:
        raise DataError(f"{path}: {len(starts)} document starts; the manifest says {entry.num_documents}")
    if starts[0] != 0 or starts[-1] >= num_symbols or (np.diff(starts) <= 0).any():
        kind = "bytes of text" if num_symbols == entry.total_bytes else "tokens"
        raise DataError(f"{path}: document starts must begin at 0, increase, and stay below the {num_symbols} {kind}")
    return starts


def _wrong_file(path: Path, entry: FileEntry) -> str | None:
    """What is wrong with a file's size or hash, in one line."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror or error})"
    num_bytes = path.stat().st_size
    if num_bytes != entry.bytes:
        return f"{path}: {num_bytes} bytes; the manifest says {entry.bytes}"
    if digest != entry.sha256:
        return f"{path}: SHA-256 {digest}; the manifest says {entry.sha256}"
    return None


def _check_text(stream: Stream) -> None:
    """Raise DataError for a document that is not UTF-8, or tokens that count other bytes than they decode to."""
    if isinstance(stream, TokenStream):
        stream.check_accounting()
    for index, document in enumerate(stream.documents()):
        try:
            document.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{stream.name}: document {index} is not UTF-8 at its byte {error.start}") from None
