"""Opening a dataset that is there: its manifest and splits, checked as they are opened.

`data.datasets` makes the built-in ones first where they are missing.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.builtin import NAME as BUILTIN
from data.byte_stream import ByteStream, ByteText
from data.folders import dataset_folder, dataset_names, datasets_root
from data.manifest import FILE_NAME, SPLITS, FileEntry, Manifest, SplitEntry, read_manifest
from data.shards import BYTES_VERSION, HEADER_BYTES, TOKENS_VERSION, read_header, read_shard, require_regular
from data.sketch_file import sketch_path, stored_sketch
from data.stream import JoinedShards, SymbolStream
from data.token_bytes import load_token_bytes
from data.token_stream import TokenStream
from data.writer import remove_leftovers
from shared.errors import DataError
from shared.spec import VocabularySpec


def existing_manifest(name: str) -> Manifest:
    """The manifest of a dataset. Raises DataError."""
    folder = dataset_folder(name)
    if not folder.is_dir():
        # One whose replacement was cut short gets its name back.
        remove_leftovers(datasets_root())
    if not folder.is_dir():
        known = ", ".join(sorted({BUILTIN, *dataset_names()} - {name})) or "none"
        raise DataError(
            f"no dataset {name!r} in {datasets_root()}; there are: {known}; "
            "`bytetwin data import` or `bytetwin data download` adds one"
        )
    return read_manifest(folder)


def open_existing(name: str, split: str, vocabulary: VocabularySpec) -> SymbolStream:
    """The stream of a split (`train` or `heldout`) as symbols of a vocabulary.

    File sizes, headers and document starts are checked here, contents by `verify_dataset`. Raises
    DataError if the dataset or split is missing or damaged, or its symbols are not those of the vocabulary.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
    manifest = existing_manifest(name)
    _check_vocabulary(manifest, vocabulary)
    entry = manifest.splits.get(split)  # type: ignore[call-overload]
    if entry is None:
        raise DataError(f"dataset {name!r} has no {split} split; it has: {', '.join(manifest.splits)}")
    folder = dataset_folder(name)
    version = BYTES_VERSION if manifest.tokenizer is None else TOKENS_VERSION
    shards = [_open_shard(folder, shard, version) for shard in entry.shards]
    if manifest.tokenizer is not None:
        return _token_stream(folder, manifest, split, entry, shards, vocabulary)
    text = ByteText(shards)
    if text.num_bytes != entry.total_bytes:
        raise DataError(
            f"{folder / FILE_NAME}: {split} shards hold {text.num_bytes} bytes, the manifest says {entry.total_bytes}"
        )
    starts = _open_document_starts(folder, entry, text.num_bytes)
    sketch = partial(stored_sketch, sketch_path(folder, split), entry)
    return ByteStream(text, starts, vocabulary, f"{name}/{split}", entry.sha256, sketch)


def vocabulary_of(manifest: Manifest) -> VocabularySpec:
    """A vocabulary that reads the dataset: raw bytes, or the tokens of its tokenizer."""
    if manifest.tokenizer is None:
        return VocabularySpec()
    return VocabularySpec(kind="tokens", vocab_size=manifest.tokenizer.vocab_size, tokenizer=manifest.vocabulary)


def wrong_file(path: Path, entry: FileEntry) -> str | None:
    """The problem with a file's size or hash, in one line; None if there is none."""
    try:
        if not path.is_file() and path.exists():
            return f"{path}: not a regular file"
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
    split: str,
    entry: SplitEntry,
    shards: list[npt.NDArray[Any]],
    vocabulary: VocabularySpec,
) -> TokenStream:
    """The stream of a split of tokens, with the byte table of the tokenizer that the dataset carries."""
    assert manifest.tokenizer is not None
    path = folder / manifest.tokenizer.file
    problem = wrong_file(path, manifest.tokenizer)
    if problem:
        raise DataError(problem)
    table = load_token_bytes(path)
    if table.vocab_size != manifest.tokenizer.vocab_size:
        raise DataError(f"{path}: {table.vocab_size} tokens; the manifest says {manifest.tokenizer.vocab_size}")
    tokens = JoinedShards(shards, table.vocab_size)
    return TokenStream(
        tokens,
        _open_document_starts(folder, entry, tokens.length),
        table,
        vocabulary,
        name=f"{manifest.name}/{split}",
        sha256=entry.sha256,
        num_bytes=entry.total_bytes,
        make_sketch=partial(stored_sketch, sketch_path(folder, split), entry),
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
        starts = np.memmap(require_regular(path), dtype="<i8", mode="r")
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
