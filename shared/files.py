"""Files that are either whole or absent, whatever kills the process that writes them.

A temporary file lies next to the file that it becomes, under a name nobody can predict. Its writer holds a lock on it,
so that one without a lock is what a killed process left behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
# Of the name of the file; with what comes around it a name may have 255 bytes.
_NAME_BYTES = 200


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file of these bytes, on disk before this returns.

    Written to a temporary file next to it, flushed, then renamed over it. Raises OSError (a full disk, no
    permission) with `path` as its file name; the old file is then untouched and nothing is left behind.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        if (written := temporary.stat().st_size) != len(content):
            raise OSError(errno.EIO, f"only {written} of {len(content)} bytes were written")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Like `write_atomically`, for content that the caller writes: yields a temporary path next to `path`, which is
    flushed and renamed over `path` at the end of the block. What killed writers of `path` left is removed first."""
    temporary, lock = None, -1
    try:
        # A link is replaced itself, wherever it leads.
        if not path.is_symlink():
            check_regular(path)
        remove_temporaries(path.parent, path.name)
        temporary, lock = _make_temporary(path)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            os.close(lock)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Like `replacing`, for a folder: yields a new one next to it, which takes its name at the end of the block.

    What killed writers left is put right first (`recover_folder`). Raises OSError; the old folder is then untouched."""
    recover_folder(folder)
    with contextlib.suppress(FileExistsError):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder.parent))
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if not folder.exists() or not exchange(temporary, folder):
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put right what a killed `replacing_folder` left: a folder without its name, between the two renames, gets it
    back."""
    start = f".{folder.name}."
    # Not by a pattern: a name may have brackets.
    beside = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
    leftovers = [path for path in beside if path.name.startswith(start) and path.is_dir() and not path.is_symlink()]
    for old in (path for path in leftovers if path.suffix == ".old"):
        if os.path.lexists(folder):
            shutil.rmtree(old)
        else:
            old.rename(folder)
    for temporary in (path for path in leftovers if path.suffix == ".tmp"):
        shutil.rmtree(temporary)


def check_regular(path: Path) -> None:
    """Raise OSError if there is something at `path` other than a file: a device would be lost, a pipe never ends."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, name: str = "") -> None:
    """Remove what killed processes left half-written in a folder: of the file `name`, by default of all."""
    start = f".{_shortened(name)}." if name else "."
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        leftovers = [entry.path for entry in entries if _is_temporary(entry, start)]
        for leftover in leftovers:
            with contextlib.suppress(OSError):
                descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if try_lock(descriptor):
                        Path(leftover).unlink()
                finally:
                    os.close(descriptor)


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool | None:
    """Take a lock that ends with the descriptor, and say whether nobody else had it; None where the file system has no
    locks, as some network file systems."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _is_temporary(entry: os.DirEntry[str], start: str) -> bool:
    named = entry.name.startswith(start) and entry.name.endswith(TEMPORARY_SUFFIX)
    return named and entry.is_file(follow_symlinks=False)


def _make_temporary(path: Path) -> tuple[Path, int]:
    """A new, empty, locked file next to `path`, with the descriptor that holds the lock."""
    while True:
        temporary = path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        # O_EXCL: never a file that is there already, nor what a link points to.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        # Some network file systems have no locks. There leftovers stay, because nothing tells them from files in use.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Between these two calls it looked like a leftover.
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_NAME_BYTES])


def exchange(one: Path, other: Path) -> bool:
    """Give two files or folders of one file system each other's names at once; False where that is not possible."""
    library, names = CDLL(None), (os.fsencode(one), os.fsencode(other))
    if hasattr(library, "renamex_np"):  # macOS, with RENAME_SWAP
        return bool(library.renamex_np(*names, 2) == 0)
    if hasattr(library, "renameat2"):  # Linux, with AT_FDCWD and RENAME_EXCHANGE
        return bool(library.renameat2(-100, names[0], -100, names[1], 2) == 0)
    return False
