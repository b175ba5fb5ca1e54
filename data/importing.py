"""Turning files into a dataset: `import_dataset` does the work of `bytetwin data import`."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data import builtin
from data.folders import dataset_folder
from data.importers import Document, LeftOut, find_files, read_documents
from data.manifest import SPLITS, Manifest, SplitName, read_manifest
from data.near_copies import heldout_documents, split_builder
from data.shards import MAX_SHARD_SYMBOLS
from data.writer import DatasetWriter, refuse_existing
from shared.errors import DataError

DEFAULT_HELDOUT_FRAC = 0.01

_CHANGED = "the files changed while they were read, so nothing was kept; import them again"


@dataclass(frozen=True)
class ImportResult:
    """The new manifest, and how many of what was left out, by the words of `data.importers` for it.

    `near_copies`: documents that nearly repeat another one and were put on its side.
    """

    manifest: Manifest
    num_files: int
    left_out: LeftOut
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
    source: str = "",
) -> ImportResult:
    """Import files and folders as dataset `name`.

    Documents go to `split`, or are split by their content with the share `heldout_frac` held out, near-copies on one
    side; the files are then read twice. `progress(done_bytes, total_bytes)` counts file bytes, each time they are read.
    The manifest says that they come from `source`, by default from these paths. Raises DataError; nothing is then left
    behind.
    """
    if not 0.0 <= heldout_frac <= 1.0:
        raise DataError(f"--heldout-frac {heldout_frac}: must be between 0 and 1")
    if split is not None and split not in SPLITS:
        raise DataError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    if name == builtin.NAME:
        raise DataError(f"dataset name {name!r} is taken by the built-in corpus; choose another")
    folder = dataset_folder(name)
    paths = list(paths)
    left_out = LeftOut()
    files = find_files(paths, left_out)
    shared_out = split is None and 0.0 < heldout_frac < 1.0
    total_bytes = sum(file.stat().st_size for file in files) * (2 if shared_out else 1)
    done_bytes = 0

    def advance(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        progress(done_bytes, total_bytes)

    def documents(left_out: LeftOut) -> Iterator[Document]:
        return itertools.chain.from_iterable(read_documents(file, text_field, advance, left_out) for file in files)

    with DatasetWriter(folder, replace=replace, max_shard_symbols=max_shard_symbols) as writer:
        held, near_copies = _sides(documents(LeftOut()), heldout_frac) if shared_out else (None, 0)
        all_on = split or ("heldout" if heldout_frac == 1.0 else "train")
        _write(writer, documents(left_out), held, all_on)
        writer.finish("imported from " + (source or ", ".join(_shown(path) for path in paths)))
    return ImportResult(read_manifest(folder), len(files), left_out, near_copies)


def import_documents(
    name: str, documents: Iterable[str], *, heldout_frac: float = DEFAULT_HELDOUT_FRAC, replace: bool = False
) -> ImportResult:
    """Import texts, each of them a document, as dataset `name`, under the rules of `import_dataset`.

    They are read once, so a generator will do, and lie in a temporary file until they are in place.
    """
    folder = dataset_folder(name)
    if not replace:
        refuse_existing(folder)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "documents.jsonl")
        with path.open("wb") as file:
            for number, text in enumerate(documents, start=1):
                if not isinstance(text, str):
                    raise DataError(f"document {number}: of type {type(text).__name__}; it must be a string")
                file.write(json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        if not path.stat().st_size:
            raise DataError(f"no documents for the dataset {name}")
        try:
            return import_dataset(name, [path], heldout_frac=heldout_frac, replace=replace, source="Python")
        except DataError as error:
            raise DataError(str(error).replace(f"{path} line", "document")) from None


def _shown(path: Path) -> str:
    """The name of a file as text that can be printed, also if it is not UTF-8."""
    name = os.fsencode(path.name).decode("utf-8", errors="backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _sides(documents: Iterable[Document], heldout_frac: float) -> tuple[list[bool], int]:
    """(whether each document is held out, the number of near-copies)."""
    builder = split_builder()
    for document in documents:
        for chunk in document():
            builder.write(chunk)
        builder.end_document()
    held, near_copies = heldout_documents(builder.finish(), heldout_frac)
    return held.tolist(), near_copies


def _write(writer: DatasetWriter, documents: Iterable[Document], held: list[bool] | None, all_on: SplitName) -> None:
    """Write the documents, each to its side or all to one."""
    written = 0
    for written, document in enumerate(documents, start=1):
        if held is not None and written > len(held):
            raise DataError(_CHANGED)
        side: SplitName = all_on if held is None else "heldout" if held[written - 1] else "train"
        writer.add(side, document())
    if held is not None and written < len(held):
        raise DataError(_CHANGED)
