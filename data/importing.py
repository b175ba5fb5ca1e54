"""Turning files into a dataset: `import_dataset` is what `bytetwin data import` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from data import builtin
from data.folders import dataset_folder
from data.importers import find_files, read_documents
from data.manifest import SPLITS, Manifest, SplitName, read_manifest
from data.shards import MAX_SHARD_SYMBOLS
from data.writer import DatasetWriter
from shared.errors import DataError

DEFAULT_HELDOUT_FRAC = 0.01


@dataclass(frozen=True)
class ImportResult:
    """The new manifest, and what was not taken: empty documents, and files of other types in folders."""

    manifest: Manifest
    num_files: int
    empty_documents: int
    other_files: int


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

    Documents go to `split`, or are split by a hash of their text with the share `heldout_frac` held out.
    `progress(done_bytes, total_bytes)` counts file bytes. Raises DataError; nothing is then left behind.
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
    total_bytes = sum(file.stat().st_size for file in files)
    done_bytes = 0

    def advance(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        progress(done_bytes, total_bytes)

    empty_documents = 0
    with DatasetWriter(folder, replace=replace, max_shard_symbols=max_shard_symbols) as writer:
        for file in files:
            for document in read_documents(file, text_field, advance):
                if document.is_empty:
                    empty_documents += 1
                    continue
                held = document.belongs_to_heldout(heldout_frac)
                writer.add(split or ("heldout" if held else "train"), document.chunks())
        writer.finish("imported from " + ", ".join(path.name for path in paths))
    return ImportResult(read_manifest(folder), len(files), empty_documents, other_files)
