"""The built-in corpus: the English text of the running Python's standard library.

It needs no network and no extra package, so that a first run works on any machine. Its documents are
the library's modules (docstrings and the comments that read as prose, in source order) and the help
topics of `pydoc_data.topics`. It is deterministic for one Python release; another release is another
text with another hash, which the manifest records.

Held-out text must be honest: a passage occurs once in the whole corpus, and no held-out document
shares `SHARED_WINDOW_BYTES` consecutive bytes with the training text.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.sketch import run_hashes
from shared.errors import DataError

NAME = "builtin"
HELDOUT_FRAC = 0.08
SHARED_WINDOW_BYTES = 64
MIN_PASSAGE_BYTES = 32
MIN_DOCUMENT_BYTES = 200
# No single held-out document may be more than this part of the held-out text: it would be the score.
MAX_HELDOUT_SHARE = 0.1

_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_WORD = re.compile(r"[A-Za-z]{2,}")
_COMMON_WORDS = frozenset(
    word
    for line in (
        "the a an of to in is are be and or not it this that for with from by on as if at we you can has have",
        "when which will must may should only all any no but was were than then there so do does use used",
    )
    for word in line.split()
)


@dataclass(frozen=True)
class BuiltinCorpus:
    """The corpus as text: documents per split, each UTF-8 encodable and not empty."""

    train: list[str]
    heldout: list[str]
    description: str


@dataclass(frozen=True)
class _Document:
    name: str
    passages: list[str]

    @property
    def text(self) -> str:
        return "\n\n".join(self.passages) + "\n"

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


def build_corpus(progress: Callable[[int, int], None] = lambda _done, _total: None) -> BuiltinCorpus:
    """Read the running Python's library; `progress(done, total)` counts its source files.

    Raises DataError if this Python carries no library sources.
    """
    modules = _deduplicated(_modules(progress))
    topics = _deduplicated(_topics())
    if sum(document.num_bytes for document in modules) < 100_000:
        raise DataError(
            f"{_library_folder()}: too few library sources for the built-in corpus; "
            "use a Python that carries its .py files, or `bytetwin data import`"
        )
    train: list[_Document] = []
    heldout: list[_Document] = []
    for kind in (modules, topics):
        kept, held = _split(kind)
        train += kept
        heldout += held
    heldout = _without_shared_text(heldout, train)
    return BuiltinCorpus(
        train=[document.text for document in train],
        heldout=[document.text for document in heldout],
        description=f"standard library of {platform.python_implementation()} {platform.python_version()}: "
        "docstrings, prose comments and help topics",
    )


def source_files() -> list[Path]:
    """The library's own .py files, sorted, without tests and installed packages."""
    found = []
    for folder, subfolders, names in os.walk(_library_folder()):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(_library_folder()).as_posix())


def _library_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules(progress: Callable[[int, int], None]) -> Iterator[_Document]:
    """One document per module: its passages in source order. A file that does not parse is skipped."""
    root = _library_folder()
    files = source_files()
    for done, path in enumerate(files, start=1):
        progress(done, len(files))
        try:
            source = path.read_bytes().decode("utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # The library's own deprecated syntax is not our business.
                nodes = _multiline_nodes(ast.parse(source))
        except (SyntaxError, ValueError):
            continue  # Template files and sources in other encodings carry no text we want.
        passages = [text for _, text in sorted(_docstrings(nodes) + _comments(source, nodes))]
        yield _Document(path.relative_to(root).as_posix(), passages)


def _docstrings(nodes: list[ast.AST]) -> list[tuple[int, str]]:
    """(line, text) of every docstring that reads as English."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            text = ast.get_docstring(node, clean=True)
            if text and _is_english(text):
                found.append((node.body[0].lineno, _tidy(text)))
    return found


def _comments(source: str, nodes: list[ast.AST]) -> list[tuple[int, str]]:
    """(line, text) of every block of whole-line comments that reads as prose rather than as code."""
    inside_strings: set[int] = set()
    for node in nodes:
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno is not None:
            inside_strings.update(range(node.lineno + 1, node.end_lineno + 1))
    found: list[tuple[int, str]] = []
    block: list[str] = []
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        stripped = line.strip()
        if stripped.startswith("#") and not stripped.startswith("#!") and number not in inside_strings:
            block.append(stripped.lstrip("#").removeprefix(" "))
        elif block:
            text = inspect.cleandoc("\n" + "\n".join(block))
            if _is_prose(text):
                found.append((number - len(block), _tidy(text)))
            block = []
    return found


def _multiline_nodes(tree: ast.Module) -> list[ast.AST]:
    """The nodes that span several lines; a node on one line holds no docstring of its own and no long string."""
    found: list[ast.AST] = [tree]
    for node in found:
        for child in ast.iter_child_nodes(node):
            if getattr(child, "end_lineno", None) != getattr(child, "lineno", 0):
                found.append(child)
    return found


def _topics() -> Iterator[_Document]:
    """One document per help topic, the longest first: short topics repeat sections of long ones."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name, text in sorted(topics.items(), key=lambda item: (-len(item[1]), item[0])):
        yield _Document(f"topics/{name}", [_tidy(part) for part in text.split("\n\n") if part.strip()])


def _tidy(text: str) -> str:
    """Trailing blanks and runs of blank lines removed, tabs expanded."""
    lines = [line.rstrip() for line in text.expandtabs().split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _is_english(text: str) -> bool:
    """Whether a passage is long enough and has at least one common English word in twelve."""
    words = _WORD.findall(text)
    if len(text) < MIN_PASSAGE_BYTES or len(words) < 5 or not text.isascii():
        return False
    return 12 * sum(word.lower() in _COMMON_WORDS for word in words) >= len(words)


def _is_prose(text: str) -> bool:
    """Whether a comment is English sentences: mostly letters and blanks, not a ruler or disabled code."""
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return _is_english(text) and letters >= 0.85 * len(text)


def _deduplicated(documents: Iterable[_Document]) -> list[_Document]:
    """Each passage once, where it first occurs; documents that become too short are dropped."""
    seen: set[str] = set()
    kept = []
    for document in documents:
        passages = []
        for passage in document.passages:
            key = " ".join(passage.split())
            if len(key) >= MIN_PASSAGE_BYTES and key in seen:
                continue
            seen.add(key)
            passages.append(passage)
        short = _Document(document.name, passages)
        if passages and short.num_bytes >= MIN_DOCUMENT_BYTES:
            kept.append(short)
    return sorted(kept, key=lambda document: document.name)


def _split(documents: list[_Document]) -> tuple[list[_Document], list[_Document]]:
    """(train, held-out): documents in order of a hash of their name are held out until the share is full."""
    wanted = HELDOUT_FRAC * sum(document.num_bytes for document in documents)
    held: set[str] = set()
    size = 0
    for document in sorted(documents, key=lambda item: hashlib.sha256(item.name.encode()).digest()):
        if size < wanted and document.num_bytes <= max(MAX_HELDOUT_SHARE * wanted, 8 * MIN_DOCUMENT_BYTES):
            held.add(document.name)
            size += document.num_bytes
    train = [document for document in documents if document.name not in held]
    return train, [document for document in documents if document.name in held]


def _without_shared_text(heldout: list[_Document], train: list[_Document]) -> list[_Document]:
    """The held-out documents without every passage that shares a long window with the training text."""
    known = np.sort(np.concatenate([_window_hashes(document) for document in train]))
    cleaned = (_without_known_windows(document, known) for document in heldout)
    return [document for document in cleaned if document.passages and document.num_bytes >= MIN_DOCUMENT_BYTES]


def _without_known_windows(document: _Document, known: np.ndarray) -> _Document:
    """Drop the passages in which a window with a known hash ends; neighbours that meet are checked again."""
    passages = document.passages
    while passages:
        hashes = _window_hashes(_Document(document.name, passages))
        slots = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        last_bytes = np.flatnonzero(known[slots] == hashes) + SHARED_WINDOW_BYTES - 1
        if last_bytes.size == 0:
            break
        # Passages are joined by two bytes, which belong to the passage before them here.
        ends = np.cumsum([len(passage.encode()) + 2 for passage in passages])
        dropped = set(np.unique(np.searchsorted(ends, last_bytes, side="right")).tolist())
        passages = [passage for index, passage in enumerate(passages) if index not in dropped]
    return _Document(document.name, passages)


def _window_hashes(document: _Document) -> np.ndarray:
    """uint64 hash of every window of SHARED_WINDOW_BYTES bytes of a document's text."""
    return run_hashes(np.frombuffer(document.text.encode(), np.uint8), SHARED_WINDOW_BYTES)
