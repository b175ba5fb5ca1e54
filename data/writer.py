"""Writing a dataset: in a temporary folder next to its final one, read back, then renamed.

Nothing of an old dataset is touched before the new one is whole: a process that is killed, or a disk that fills up,
leaves the old one or the new one under its name, and never a half-written one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.manifest import (
    BYTES_VOCABULARY,
    FILE_NAME,
    FileEntry,
    Manifest,
    Origin,
    SplitEntry,
    SplitName,
    TokenizerEntry,
    dataset_hash,
    read_manifest,
)
from data.shards import BYTES_VERSION, MAX_SHARD_SYMBOLS, TOKENS_VERSION, ShardHeader, ShardWriter, sync_and_close
from data.sketch import SketchBuilder
from data.sketch_file import sketch_path, write_sketch
from shared.errors import DataError
from shared.files import exchange, sync_folder, try_lock

TOKENIZER_FILE = "tokenizer.model"

# .NAME.KIND-PROCESS-RANDOM: a dataset being written, or the one it replaces while the two are swapped.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|old)-(?P<process>[0-9]+)-[^.]+")


class DatasetWriter:
    """Collects documents into a new dataset; `finish` gives it its name. Use it as a context manager.

    Raises DataError if the dataset exists (unless `replace`, or `keep_existing`, which then discards
    the new one), if the disk is full or not writable, and for a dataset without a document. With `tokenizer`,
    the content of a SentencePiece model, it is a dataset of that model's `vocab_size` tokens, else one of bytes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        replace: bool = False,
        keep_existing: bool = False,
        max_shard_symbols: int = MAX_SHARD_SYMBOLS,
        tokenizer: bytes | None = None,
        vocab_size: int = 0,
    ) -> None:
        self._folder = folder
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._replace = replace
        self._keep_existing = keep_existing
        self._max_shard_symbols = max_shard_symbols
        self._splits: dict[SplitName, _SplitWriter] = {}
        self._temporary = folder
        self._lock = -1

    def __enter__(self) -> DatasetWriter:
        if not (self._replace or self._keep_existing):
            refuse_existing(self._folder)
        with self._disk_errors():
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self._folder.parent)
            self._temporary = self._make_temporary("partial")
            self._lock = _locked(self._temporary)
            # mkdtemp makes a private folder; a dataset is as readable as any other file of the user.
            self._temporary.chmod(0o777 & ~_umask())
        return self

    def __exit__(self, *_: object) -> None:
        for split in self._splits.values():
            split.abandon()
        shutil.rmtree(self._temporary, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)

    def add(self, split: SplitName, chunks: Iterable[bytes]) -> None:
        """Append one document, not empty, given as consecutive pieces of UTF-8 text."""
        assert self._tokenizer is None, "a dataset of tokens"
        self._add(split, ((chunk, chunk) for chunk in chunks))

    def add_tokens(self, split: SplitName, tokens: npt.NDArray[np.uint16], text: bytes) -> None:
        """Append one document as tokens `[T]`, its start among them, that decode to `text`, not empty."""
        assert self._tokenizer is not None and text, "a dataset of bytes, or a document without text"
        self._add(split, [(tokens.astype("<u2").tobytes(), text)])

    def finish(self, source: str, origin: Origin | None = None) -> None:
        """Write the manifest, force everything to the disk and rename the dataset into place."""
        if not self._splits:
            raise DataError(f"dataset {self._folder.name!r}: no document with text, nothing to write")
        with self._disk_errors():
            entries = {split: self._splits[split].finish() for split in sorted(self._splits, reverse=True)}
            tokenizer = self._write_tokenizer()
            vocabulary = tokenizer.sha256 if tokenizer else BYTES_VOCABULARY
            manifest = Manifest(
                name=self._folder.name,
                vocabulary=vocabulary,
                source=source,
                origin=origin,
                tokenizer=tokenizer,
                splits=entries,
                sha256=dataset_hash(vocabulary, entries),
            )
            _write_synced(self._temporary / FILE_NAME, manifest.to_json().encode())
            read_manifest(self._temporary, manifest.name)
            sync_folder(self._temporary)
            self._put_in_place()
            sync_folder(self._folder.parent)

    def _add(self, split: SplitName, pieces: Iterable[tuple[bytes, bytes]]) -> None:
        """Append one document, given as pieces of symbols as they are stored and the text that they stand for."""
        if split not in self._splits:
            version = BYTES_VERSION if self._tokenizer is None else TOKENS_VERSION
            with self._disk_errors():
                self._splits[split] = _SplitWriter(self._temporary, split, self._max_shard_symbols, version)
        writer = self._splits[split]
        writer.begin_document()
        for symbols, text in pieces:
            with self._disk_errors():
                writer.write(symbols, text)
        writer.end_document()

    def _write_tokenizer(self) -> TokenizerEntry | None:
        """Copy the tokenizer into the dataset, so that nothing else is needed to read it."""
        if self._tokenizer is None:
            return None
        path = self._temporary / TOKENIZER_FILE
        _write_synced(path, self._tokenizer)
        return TokenizerEntry(vocab_size=self._vocab_size, **_file_entry(path).model_dump())

    def _put_in_place(self) -> None:
        if self._replace and self._folder.exists():
            if exchange(self._temporary, self._folder):
                return  # What is temporary now is the old one.
            old = self._make_temporary("old")
            self._folder.replace(old)
            try:
                self._temporary.rename(self._folder)
            except BaseException:
                old.rename(self._folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
            return
        try:
            self._temporary.rename(self._folder)
        except OSError:
            if not self._folder.exists():
                raise
            if not self._keep_existing:
                refuse_existing(self._folder)

    def _make_temporary(self, kind: str) -> Path:
        prefix = f".{self._folder.name}.{kind}-{os.getpid()}-"
        return Path(tempfile.mkdtemp(prefix=prefix, dir=self._folder.parent))

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turn an OSError into a DataError that names the dataset."""
        try:
            yield
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise DataError(
                f"cannot write dataset {self._folder.name!r} in {self._folder.parent}: {reason}; nothing was kept"
            ) from None


def refuse_existing(folder: Path) -> None:
    """Raise DataError if the dataset exists."""
    if folder.exists():
        raise DataError(f"dataset {folder.name!r} exists in {folder.parent}; --replace overwrites it")


def remove_leftovers(root: Path) -> None:
    """Remove what killed processes left half-written in the folder of all datasets.

    A dataset whose replacement was cut short between two renames gets its name back.
    """
    for leftover in root.glob(".*-*"):
        match = _TEMPORARY.fullmatch(leftover.name)
        if match is None or _is_alive(int(match["process"])):
            continue
        lock = _locked(leftover)
        if lock < 0:
            continue  # Of a living process after all: on another machine that shares this folder.
        try:
            folder = root / match["name"]
            if match["kind"] == "old" and (leftover / FILE_NAME).exists() and not folder.exists():
                with contextlib.suppress(OSError):
                    leftover.rename(folder)
            else:
                shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(lock)


class _SplitWriter:
    """Shards and document starts of one split."""

    def __init__(self, folder: Path, split: str, max_shard_symbols: int, version: int) -> None:
        self._folder = folder
        self._version = version
        self._symbol_bytes = ShardHeader(version, 0).dtype.itemsize
        self._split = split
        self._max_shard_symbols = max_shard_symbols
        self._shard_paths: list[Path] = []
        self._shard: ShardWriter | None = None
        self._starts_path = folder / f"{split}_documents.bin"
        self._starts = self._starts_path.open("xb")
        self._document_start = 0
        self._num_documents = 0
        self._num_symbols = 0
        self._total_bytes = 0
        self._sketch = SketchBuilder()

    def begin_document(self) -> None:
        self._document_start = self._num_symbols

    def write(self, chunk: bytes, text: bytes) -> None:
        """Append symbols, given as they are stored, that stand for a piece of text."""
        view = memoryview(chunk)
        while view:
            shard = self._open_shard()
            piece = view[: (self._max_shard_symbols - shard.num_symbols) * self._symbol_bytes]
            shard.write(piece)
            self._num_symbols += len(piece) // self._symbol_bytes
            view = view[len(piece) :]
        self._total_bytes += len(text)
        self._sketch.write(text)

    def end_document(self) -> None:
        assert self._num_symbols > self._document_start, "an empty document"
        self._starts.write(np.array(self._document_start, dtype="<i8").tobytes())
        self._num_documents += 1
        self._sketch.end_document()

    def finish(self) -> SplitEntry:
        """Close every file and store the text's sketch with them; returns their manifest entry."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        sync_and_close(self._starts)
        entry = SplitEntry(
            shards=[_file_entry(path) for path in self._shard_paths],
            num_documents=self._num_documents,
            total_bytes=self._total_bytes,
            document_starts=_file_entry(self._starts_path),
        )
        write_sketch(sketch_path(self._folder, self._split), self._sketch.finish(), entry.sha256)
        return entry

    def abandon(self) -> None:
        """Close what is open; the files are about to be deleted, so a full disk no longer matters."""
        with contextlib.suppress(OSError):
            self._starts.close()
        if self._shard is not None:
            self._shard.abandon()

    def _open_shard(self) -> ShardWriter:
        """The shard with room for another symbol."""
        if self._shard is not None and self._shard.num_symbols == self._max_shard_symbols:
            self._shard.close()
            self._shard = None
        if self._shard is None:
            path = self._folder / f"{self._split}_{len(self._shard_paths):06d}.bin"
            self._shard = ShardWriter(path, self._version)
            self._shard_paths.append(path)
        return self._shard


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        sync_and_close(file)


def _file_entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(file=path.name, bytes=path.stat().st_size, sha256=digest)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _locked(folder: Path) -> int:
    """A descriptor that holds the lock of a folder until it is closed or its process dies; -1 if another has it, or the
    file system has no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return -1
    if not try_lock(descriptor):
        os.close(descriptor)
        return -1
    return descriptor


def _is_alive(process: int) -> bool:
    """Whether a process of this machine has this number, whoever owns it."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
