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
import platform
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
    "the a an of to in is are be and or not it this that for with from by on as if at we you can has have "
    "when which will must may should only all any no but was were than then there so do does use used".split()
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


def build_corpus(advance: Callable[[], None] = lambda: None) -> BuiltinCorpus:
    """Read the running Python's library; `advance` is called once per source file, for a progress display.

    Raises DataError if this Python carries no library sources.
    """
    modules = _deduplicated(_modules(advance))
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
    root = _library_folder()
    files = (path for path in root.rglob("*.py") if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts[:-1]))
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _library_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _modules(advance: Callable[[], None]) -> Iterator[_Document]:
    """One document per module: its passages in source order. A file that does not parse is no module."""
    root = _library_folder()
    for path in source_files():
        advance()
        try:
            source = path.read_bytes().decode("utf-8")
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue  # Template files and sources in other encodings carry no text we want.
        passages = [text for _, text in sorted(_docstrings(tree) + _comments(source, tree))]
        yield _Document(path.relative_to(root).as_posix(), passages)


def _docstrings(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, text) of every docstring that reads as English."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            text = ast.get_docstring(node, clean=True)
            if text and _is_english(text):
                found.append((node.body[0].lineno, _tidy(text)))
    return found


def _comments(source: str, tree: ast.Module) -> list[tuple[int, str]]:
    """(line, text) of every block of whole-line comments that reads as prose rather than as code."""
    inside_strings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno is not None:
            inside_strings.update(range(node.lineno + 1, node.end_lineno + 1))
    found: list[tuple[int, str]] = []
    block: list[str] = []
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        stripped = line.strip()
        if stripped.startswith("#") and not stripped.startswith("#!") and number not in inside_strings:
            block.append(stripped.lstrip("#").removeprefix(" "))
            continue
        text = inspect.cleandoc("\n" + "\n".join(block))
        if block and _is_prose(text):
            found.append((number - len(block), _tidy(text)))
        block = []
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
    known = np.unique(np.concatenate([_window_hashes(document.text) for document in train]))
    kept = []
    for document in heldout:
        passages = [passage for passage in document.passages if not _any_known(passage, known)]
        # A window may also span two neighbours; dropping the later one ends it.
        position = 1
        while position < len(passages):
            if _any_known("\n\n".join(passages[: position + 1]), known):
                del passages[position]
            else:
                position += 1
        clean = _Document(document.name, passages)
        if passages and clean.num_bytes >= MIN_DOCUMENT_BYTES and not _any_known(clean.text, known):
            kept.append(clean)
    return kept


def _any_known(text: str, known: np.ndarray) -> bool:
    return bool(np.isin(_window_hashes(text), known, kind="sort").any())


def _window_hashes(text: str) -> np.ndarray:
    """uint64 polynomial hash of every window of SHARED_WINDOW_BYTES bytes, by doubling: 1, 2, 4, ... 64."""
    hashes = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint64) + np.uint64(1)
    multiplier, length = 0x9E3779B97F4A7C15, 1
    while length < SHARED_WINDOW_BYTES and len(hashes) > length:
        hashes = hashes[:-length] * np.uint64(multiplier) + hashes[length:]
        multiplier, length = multiplier * multiplier % 2**64, 2 * length
    return hashes if length == SHARED_WINDOW_BYTES else hashes[:0]
