"""Documents from files: .txt and .md, .jsonl, .parquet, plain or compressed, and folders of them.

Text is taken byte for byte and must be UTF-8; a byte order mark at the start of a file is not text. Memory stays
bounded whatever a file says: a .txt or .md file of any size is one document, read twice in pieces, one that is a line
of a .jsonl file or a row of a .parquet file has at most MAX_DOCUMENT_BYTES, and no file may unpack without end.
What is left out on purpose is counted by its reason.
"""

from __future__ import annotations

import codecs
import importlib
import itertools
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data.unpacking import COMPRESSIONS, FREE_BYTES, PIECE_BYTES, Advance, check_ratio, unpacked
from shared.errors import DataError

TEXT_SUFFIXES = (".txt", ".md")
LINE_SUFFIXES = (".jsonl", ".ndjson")
PARQUET_SUFFIX = ".parquet"
# Parsed JSON takes up to 30 times its size.
MAX_DOCUMENT_BYTES = 8_000_000
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

EMPTY, NULL, MARK = "empty documents", "documents whose text is null", "byte order marks at the start of a file"
OTHER, HIDDEN = "files of other types", "hidden files and folders"
LINKED, SPECIAL = "links to folders", "links to nothing, pipes, sockets or devices"

# Gives the UTF-8 text of one document in pieces, as often as it is called.
Document = Callable[[], Iterator[bytes]]
# How many of what was left out, by the words for it above.
LeftOut = Counter[str]


def find_files(paths: list[Path], left_out: LeftOut) -> list[Path]:
    """The files to import: the paths given, folders walked in sorted order without following links to folders.

    Raises DataError for a path that is missing, of an unknown type or not a regular file, and for a folder with no
    file to import.
    """
    found: list[Path] = []
    for path in paths:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise DataError(f"{path}: no such file or folder") from None
        except OSError as error:
            raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from None
        if stat.S_ISDIR(mode):
            inside, passed = _files_within(path)
            left_out.update(passed)
            if not inside:
                others = "".join(f"; {count} {what} in it" for what, count in passed.items())
                raise DataError(f"{path}: no file to import in this folder{others}; allowed are {allowed_files()}")
            found += sorted(inside)
        elif not stat.S_ISREG(mode):
            raise DataError(f"{path}: a pipe, socket or device; it must be a regular file or a folder")
        elif _kind(path) is None:
            raise DataError(f"{path}: unknown file type; allowed are {allowed_files()}")
        else:
            found.append(path)
    return found


def read_documents(
    path: Path, text_field: str = "text", advance: Advance = lambda _: None, left_out: LeftOut | None = None
) -> Iterator[Document]:
    """Every document of one file that has text, the others counted in `left_out`; `advance` gets the number of bytes
    as they are read.

    Raises DataError naming the file, and the line where there is one.
    """
    left_out = LeftOut() if left_out is None else left_out
    kind = _kind(path)
    if kind == PARQUET_SUFFIX:
        yield from _parquet_documents(path, text_field, advance, left_out)
    elif kind in LINE_SUFFIXES:
        yield from _line_documents(path, text_field, advance, left_out)
    else:
        yield from _file_document(path, advance, left_out)


def _files_within(folder: Path) -> tuple[list[Path], LeftOut]:
    """(every file to import below a folder, what else is there). Raises DataError for an unreadable folder."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot read the folder ({error.strerror or error})")

    found, left_out = [], LeftOut()
    for parent, subfolders, names in os.walk(folder, onerror=refuse):
        for name in [*names, *subfolders]:
            path = Path(parent, name)
            if name.startswith("."):
                left_out[HIDDEN] += 1
            elif path.is_dir():
                left_out[LINKED] += path.is_symlink()
            elif not path.is_file():
                left_out[SPECIAL] += 1
            elif _kind(path) is None:
                left_out[OTHER] += 1
            else:
                found.append(path)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return found, +left_out


def _kind(path: Path) -> str | None:
    """The suffix that says how to read a file, None if nothing does."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = Path(name).suffix
    if suffix == PARQUET_SUFFIX and path.suffix.lower() != PARQUET_SUFFIX:
        return None
    return suffix if suffix in (*TEXT_SUFFIXES, *LINE_SUFFIXES, PARQUET_SUFFIX) else None


def allowed_files() -> str:
    """The files that can be imported, for people."""
    plain = ", ".join((*TEXT_SUFFIXES, *LINE_SUFFIXES))
    return f"{plain}, each also with {', '.join(COMPRESSIONS)}, and {PARQUET_SUFFIX}"


def _parquet_documents(path: Path, text_field: str, advance: Advance, left_out: LeftOut) -> Iterator[Document]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{path}: reading .parquet needs pyarrow; install it with the extra: bytetwin[data]") from None
    try:
        with parquet.ParquetFile(path, buffer_size=PIECE_BYTES, pre_buffer=False) as file:
            columns = file.schema_arrow.names
            if text_field not in columns:
                names = ", ".join(columns[:10])
                raise DataError(f"{path}: no column {text_field!r}; columns: {names} (see --text-field)")
            num_rows, row, text_bytes, file_bytes = file.metadata.num_rows, 0, 0, path.stat().st_size
            for batch in file.iter_batches(
                _batch_rows(path, file, text_field), columns=[text_field], use_threads=False
            ):
                if batch.nbytes > MAX_DOCUMENT_BYTES * len(batch) + PIECE_BYTES:
                    raise _too_long(f"{path} row {row + 1}" + (f" to {row + len(batch)}" if len(batch) > 1 else ""))
                advance(file_bytes * (row + len(batch)) // num_rows - file_bytes * row // num_rows)
                for value in batch.column(0).to_pylist():
                    row += 1
                    # Not the bytes of the batch: a dictionary has a text once, however many rows repeat it.
                    text_bytes += len(value) if isinstance(value, str) else 0
                    check_ratio(path, text_bytes, file_bytes)
                    yield from _text_document(value, f"{path} row {row}", left_out)
    except UnicodeDecodeError:
        raise DataError(f"{path}: row {row + 1} or one of the next has text that is not UTF-8") from None
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own errors derive from these.
        if isinstance(error, DataError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: damaged or unreadable parquet file ({reason})") from None


def _batch_rows(path: Path, file: Any, text_field: str) -> int:
    """Rows to read at once so that they stay small, even if a dictionary repeats its longest text in each.

    Raises DataError if the pages of the text unpack without end.
    """
    metadata, most = file.metadata, 1
    for group in range(metadata.num_row_groups):
        chunks = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
        sizes = [
            (chunk.total_uncompressed_size, chunk.total_compressed_size)
            for chunk in chunks
            if f"{chunk.path_in_schema}.".startswith(f"{text_field}.")
        ]
        for unpacked_bytes, packed_bytes in sizes:
            check_ratio(path, unpacked_bytes, packed_bytes)
            most = max(most, unpacked_bytes)
    return min(1024, max(1, FREE_BYTES // most))


def _line_documents(path: Path, text_field: str, advance: Advance, left_out: LeftOut) -> Iterator[Document]:
    # An integer may have any number of digits; none is used.
    decode = json.JSONDecoder(parse_int=len).decode
    for number, line in _lines(path, advance, left_out):
        if line.isspace():
            continue
        where = f"{path} line {number}"
        try:
            record = decode(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 at byte {error.start + 1} of the line") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise DataError(f"{where}: a JSON {type(record).__name__}; each line must be an object with a text field")
        if text_field not in record:
            fields = ", ".join(field[:40] for field in list(record)[:10])
            raise DataError(f"{where}: no field {text_field!r}; fields: {fields} (see --text-field)")
        yield from _text_document(record[text_field], where, left_out)


def _text_document(text: object, where: str, left_out: LeftOut) -> Iterator[Document]:
    """A document held in memory, if it has text. Raises DataError if it is not text that UTF-8 can express."""
    if text is None:
        left_out[NULL] += 1
        return
    if not isinstance(text, str):
        raise DataError(f"{where}: the text is of type {type(text).__name__}; it must be a string or null")
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: character {error.start + 1} is a lone surrogate, which is not UTF-8") from None
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _too_long(where)
    if not text or text.isspace():
        left_out[EMPTY] += 1
    else:
        yield partial(iter, (data,))


def _file_document(path: Path, advance: Advance, left_out: LeftOut) -> Iterator[Document]:
    """A whole file as one document, if it has text; checked now, read again when it is written."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    is_empty, line = True, 1
    for piece in itertools.chain(_pieces(path, advance, left_out), [b""]):
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            byte, bad = error.object[error.start], f"{path} line {line}: not UTF-8"
            encoding = "UTF-16" if error.object.startswith(_UTF_16_MARKS) else "ITS-ENCODING"
            raise DataError(
                f"{bad} (byte 0x{byte:02x}); `iconv -f {encoding} -t UTF-8 FILE > NEW` converts it"
            ) from None
        line += piece.count(b"\n")
        is_empty = is_empty and (not text or text.isspace())
    if is_empty:
        left_out[EMPTY] += 1
    else:
        yield partial(_pieces, path)


def _lines(path: Path, advance: Advance, left_out: LeftOut) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that has any, without its end. Raises DataError for one that is too long."""
    begun: list[bytes] = []
    begun_bytes, number = 0, 1
    for piece in _pieces(path, advance, left_out):
        *ended, rest = piece.split(b"\n")
        for line in ended:
            if line or begun:
                yield number, b"".join([*begun, line])
                begun, begun_bytes = [], 0
            number += 1
        if rest:
            begun.append(rest)
        begun_bytes += len(rest)
        if begun_bytes > MAX_DOCUMENT_BYTES:
            raise _too_long(f"{path} line {number}")
    if begun:
        yield number, b"".join(begun)


def _too_long(where: str) -> DataError:
    return DataError(
        f"{where}: a document of more than {MAX_DOCUMENT_BYTES:,} bytes in one line or row; cut it, or put it into a "
        ".txt file of its own"
    )


def _pieces(path: Path, advance: Advance = lambda _: None, left_out: LeftOut | None = None) -> Iterator[bytes]:
    """The decompressed contents in pieces, none empty, without a byte order mark, which is counted.

    Raises DataError for a file that is damaged, truncated or cannot be read.
    """
    pieces = unpacked(path, advance)
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= len(codecs.BOM_UTF8):
            break
    if head.startswith(codecs.BOM_UTF8):
        head = head.removeprefix(codecs.BOM_UTF8)
        if left_out is not None:
            left_out[MARK] += 1
    if head:
        yield head
    yield from pieces
