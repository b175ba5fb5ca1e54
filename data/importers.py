"""Documents from files: .txt and .md, .jsonl, .parquet, plain or compressed, and folders of them.

Text is taken byte for byte and must be UTF-8. Memory stays bounded by the longest line of a .jsonl
file or row group of a .parquet file; a .txt or .md file of any size is one document, read twice in pieces.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from shared.errors import DataError

COMPRESSIONS = (".gz", ".xz", ".zst")
TEXT_SUFFIXES = (".txt", ".md")
LINE_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIX = ".parquet"
PIECE_BYTES = 1 << 20
ZSTD_INPUT_BYTES = 1 << 13
MAX_LINE_BYTES = 1 << 28

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Document:
    """One document. `chunks()` reads its UTF-8 text in pieces; `is_empty`: it has nothing but white space."""

    is_empty: bool
    chunks: Callable[[], Iterator[bytes]]


def find_files(paths: list[Path]) -> tuple[list[Path], int]:
    """(files to import: the paths given, folders walked in sorted order; number of other files left out).

    Raises DataError for a path that is missing or of an unknown type, and for a folder with no file to import.
    """
    found: list[Path] = []
    left_out = 0
    for path in paths:
        if path.is_dir():
            inside = _files_within(path)
            usable = sorted(file for file in inside if _kind(file) is not None)
            if not usable:
                raise DataError(f"{path}: no file to import in this folder; allowed are {_allowed()}")
            left_out += len(inside) - len(usable)
            found += usable
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder")
        elif _kind(path) is None:
            raise DataError(f"{path}: unknown file type; allowed are {_allowed()}")
        else:
            found.append(path)
    return found, left_out


def read_documents(path: Path, text_field: str = "text", advance: Advance = lambda _: None) -> Iterator[Document]:
    """Every document of one file, empty ones included; `advance` gets the number of bytes as they are read.

    Raises DataError naming the file, and the line where there is one.
    """
    kind = _kind(path)
    if kind == PARQUET_SUFFIX:
        yield from _parquet_documents(path, text_field, advance)
    elif kind in LINE_SUFFIXES:
        yield from _line_documents(path, text_field, advance)
    else:
        yield _file_document(path, advance)


def _files_within(folder: Path) -> list[Path]:
    """Every file below a folder, without hidden ones. Raises DataError for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot read the folder ({error.strerror or error})")

    found = []
    for parent, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return found


def _kind(path: Path) -> str | None:
    """The suffix that says how to read a file, None if nothing does."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = Path(name).suffix
    if suffix == PARQUET_SUFFIX and path.suffix.lower() != PARQUET_SUFFIX:
        return None
    return suffix if suffix in (*TEXT_SUFFIXES, *LINE_SUFFIXES, PARQUET_SUFFIX) else None


def _allowed() -> str:
    plain = ", ".join((*TEXT_SUFFIXES, *LINE_SUFFIXES))
    return f"{plain}, each also with {', '.join(COMPRESSIONS)}, and {PARQUET_SUFFIX}"


def _parquet_documents(path: Path, text_field: str, advance: Advance) -> Iterator[Document]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{path}: reading .parquet needs pyarrow; install it with the extra: bytetwin[data]") from None
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_field not in columns:
                raise DataError(f"{path}: no column {text_field!r}; columns: {', '.join(columns)} (see --text-field)")
            num_rows, row, file_bytes = file.metadata.num_rows, 0, path.stat().st_size
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                advance(file_bytes * (row + len(batch)) // num_rows - file_bytes * row // num_rows)
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _text_document("" if value is None else value, f"{path} row {row}")
    except UnicodeDecodeError:
        raise DataError(f"{path}: row {row + 1} or one of the next has text that is not UTF-8") from None
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own errors derive from these.
        if isinstance(error, DataError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: damaged or unreadable parquet file ({reason})") from None


def _line_documents(path: Path, text_field: str, advance: Advance) -> Iterator[Document]:
    for number, line in enumerate(_lines(path, advance), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 at byte {error.start + 1} of the line") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise DataError(f"{where}: a JSON {type(record).__name__}; each line must be an object with a text field")
        if text_field not in record:
            fields = ", ".join(list(record)[:10])
            raise DataError(f"{where}: no field {text_field!r}; fields: {fields} (see --text-field)")
        yield _text_document(record[text_field], where)


def _text_document(text: object, where: str) -> Document:
    """A document held in memory. Raises DataError if it is not text that UTF-8 can express."""
    if not isinstance(text, str):
        raise DataError(f"{where}: the text is of type {type(text).__name__}; it must be a string")
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: character {error.start + 1} is a lone surrogate, which is not UTF-8") from None
    return Document(not text.strip(), partial(iter, (data,)))


def _file_document(path: Path, advance: Advance) -> Document:
    """A whole file as one document, checked now, read again when it is written."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    is_empty, line = True, 1
    for piece in _pieces(path, advance, final=True):
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            raise DataError(f"{path} line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x})") from None
        line += piece.count(b"\n")
        is_empty = is_empty and not text.strip()
    return Document(is_empty, partial(_pieces, path))


def _lines(path: Path, advance: Advance) -> Iterator[bytes]:
    """Lines without their end. Raises DataError for one that is too long to be a document."""
    begun: list[bytes] = []
    begun_bytes = 0
    for piece in _pieces(path, advance):
        *ended, rest = piece.split(b"\n")
        for line in ended:
            yield b"".join([*begun, line])
            begun, begun_bytes = [], 0
        begun.append(rest)
        begun_bytes += len(rest)
        if begun_bytes > MAX_LINE_BYTES:
            raise DataError(f"{path}: a line of more than {MAX_LINE_BYTES} bytes; each line must be one document")
    yield b"".join(begun)


def _pieces(path: Path, advance: Advance = lambda _: None, *, final: bool = False) -> Iterator[bytes]:
    """The decompressed contents in pieces, none empty, but with `final` an empty one at the end.

    Raises DataError for a file that is damaged, truncated or cannot be read.
    """
    try:
        with path.open("rb") as raw:
            match path.suffix.lower():
                case ".gz":
                    with gzip.open(raw) as unpacked:
                        yield from _read_all(unpacked, raw, advance)
                case ".xz":
                    with lzma.open(raw) as unpacked:
                        yield from _read_all(unpacked, raw, advance)
                case ".zst":
                    yield from _unpacked_zstd(raw, advance)
                case _:
                    yield from _read_all(raw, raw, advance)
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged {path.suffix[1:]} file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from None
    if final:
        yield b""


def _read_all(file: Any, raw: BinaryIO, advance: Advance) -> Iterator[bytes]:
    """Pieces of `file`; progress is the position in the file below it."""
    position = 0
    while piece := file.read(PIECE_BYTES):
        advance(raw.tell() - position)
        position = raw.tell()
        yield piece


def _unpacked_zstd(raw: BinaryIO, advance: Advance) -> Iterator[bytes]:
    """Pieces of a zstd file of any number of frames. Small inputs bound what one call can unpack."""
    decompressor = zstandard.ZstdDecompressor()
    frame = None
    while data := raw.read(ZSTD_INPUT_BYTES):
        advance(len(data))
        while data:
            frame = frame or decompressor.decompressobj()
            if piece := frame.decompress(data):
                yield piece
            data = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError("it ends within a frame")
