"""Turning files into a dataset: `import_dataset` does the work of `bytetwin data import`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data import builtin
from data.folders import dataset_folder
from data.importers import Document, find_files, read_documents
from data.manifest import SPLITS, Manifest, SplitName, read_manifest
from data.near_copies import heldout_documents, split_builder
from data.shards import MAX_SHARD_SYMBOLS
from data.writer import DatasetWriter
from shared.errors import DataError

DEFAULT_HELDOUT_FRAC = 0.01

_CHANGED = "the files changed while they were read, so nothing was kept; import them again"


@dataclass(frozen=True)
class ImportResult:
    """The new manifest, and what was left out: empty documents, and files of other types in folders.

    `near_copies`: documents that nearly repeat another one and were put on its side.
    """

    manifest: Manifest
    num_files: int
    empty_documents: int
    other_files: int
    near_copies: int


def import_dataset(
    name: str,
    paths: Iterable[Path],
    *,
    heldout_frac: float = DEFAULT_HELDOUT_FRAC,
    split: SplitName | None = None,
    text_field: str = "text",
    replace: bool = False,
    max_shard_symbols: int = MAX_SHARD_SYMBOLS,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ImportResult:
    """Import files and folders as dataset `name`.

    Documents go to `split`, or are split by their content with the share `heldout_frac` held out, near-copies on one
    side; the files are then read twice. `progress(done_bytes, total_bytes)` counts file bytes, each time they are read.
    Raises DataError; nothing is then left behind.
    """
    if not 0.0 <= heldout_frac <= 1.0:
        raise DataError(f"--heldout-frac {heldout_frac}: must be between 0 and 1")
    if split is not None and split not in SPLITS:
        raise DataError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    if name == builtin.NAME:
        raise DataError(f"dataset name {name!r} is taken by the built-in corpus; choose another")
    folder = dataset_folder(name)
    paths = list(paths)
    files, other_files = find_files(paths)
    shared_out = split is None and 0.0 < heldout_frac < 1.0
    total_bytes = sum(file.stat().st_size for file in files) * (2 if shared_out else 1)
    done_bytes = 0

    def advance(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        progress(done_bytes, total_bytes)

    def documents() -> Iterator[Document]:
        return itertools.chain.from_iterable(read_documents(file, text_field, advance) for file in files)

    with DatasetWriter(folder, replace=replace, max_shard_symbols=max_shard_symbols) as writer:
        held, near_copies = _sides(documents(), heldout_frac) if shared_out else (None, 0)
        all_on = split or ("heldout" if heldout_frac == 1.0 else "train")
        empty_documents = _write(writer, documents(), held, all_on)
        writer.finish("imported from " + ", ".join(path.name for path in paths))
    return ImportResult(read_manifest(folder), len(files), empty_documents, other_files, near_copies)


def _sides(documents: Iterable[Document], heldout_frac: float) -> tuple[list[bool], int]:
    """(whether each document with text is held out, the number of near-copies)."""
    builder = split_builder()
    for document in documents:
        if not document.is_empty:
            for chunk in document.chunks():
                builder.write(chunk)
            builder.end_document()
    held, near_copies = heldout_documents(builder.finish(), heldout_frac)
    return held.tolist(), near_copies


def _write(writer: DatasetWriter, documents: Iterable[Document], held: list[bool] | None, all_on: SplitName) -> int:
    """Write the documents that have text, each to its side or all to one; returns how many have none."""
    written = empty_documents = 0
    for document in documents:
        if document.is_empty:
            empty_documents += 1
            continue
        if held is not None and written == len(held):
            raise DataError(_CHANGED)
        side: SplitName = all_on if held is None else "heldout" if held[written] else "train"
        writer.add(side, document.chunks())
        written += 1
    if held is not None and written < len(held):
        raise DataError(_CHANGED)
    return empty_documents
