"""Files of a hub repository in the local hub cache: resumed, checked, several at a time.

huggingface_hub lists, authenticates and speaks HTTP. It restarts an interrupted file from zero, does not check
hashes and draws a bar per file; so the bytes are downloaded here, into its own cache layout, where its other tools
find them: `blobs/HASH`, and `snapshots/COMMIT/PATH` pointing there. A killed download leaves its bytes in
`blobs/HASH.incomplete`, and the next one requests only the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO

from data.hub_api import LIBRARY, REPO_TYPE, TIMEOUT_S, HubFile, Repository, cache_folder, endpoint, hub_errors
from shared.errors import DataError

NUM_THREADS = 4
# Waits before another attempt; a connection that brought new bytes starts the list again.
RETRY_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
MAX_ASKED_WAIT_S = 300.0


class HubFiles:
    """The files of one repository commit. `folder` is the repository's folder in the cache."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.folder = cache_folder() / f"{REPO_TYPE}s--{repository.repo_id.replace('/', '--')}"
        self._stop = threading.Event()
        self._progress_lock = threading.Lock()
        self._progress: Callable[[int], None] = lambda _num_bytes: None

    def missing_bytes(self, files: list[HubFile]) -> int:
        """Bytes that `fetch` still has to download."""
        missing = 0
        for file in files:
            blob, partial = self._paths(file)
            present = blob if blob.exists() else partial
            missing += max(0, file.size_bytes - present.stat().st_size) if present.exists() else file.size_bytes
        return missing

    def fetch(self, files: list[HubFile], progress: Callable[[int], None]) -> dict[str, Path]:
        """Download what is missing, check every file, and return where each path is.

        `progress(num_bytes)` gets the bytes that were checked or newly downloaded, in all the sum of the sizes;
        a file that has to be restarted takes its bytes back. Raises DataError; files that were whole stay
        in the cache, and so does the beginning of those that were not, unless their bytes were wrong.
        """
        self._progress = progress
        self._stop.clear()
        with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="download") as pool:
            futures = {file.path: pool.submit(self._fetch, file) for file in files}
            try:
                wait(futures.values(), return_when=FIRST_EXCEPTION)
            finally:
                # Reached by Ctrl-C too: the others stop at their next piece.
                self._stop.set()
                pool.shutdown(cancel_futures=True)
        errors = [future.exception() for future in futures.values() if not future.cancelled()]
        for error in errors:
            if error is not None and not isinstance(error, _StoppedError):
                raise error
        return {path: future.result() for path, future in futures.items()}

    def _fetch(self, file: HubFile) -> Path:
        from huggingface_hub.utils import WeakFileLock

        blob, partial = self._paths(file)
        lock = cache_folder() / ".locks" / self.folder.name / f"{file.digest}.lock"
        with _disk_errors(file.path, blob.parent):
            blob.parent.mkdir(parents=True, exist_ok=True)
            lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock):
                if blob.exists():
                    if _digest(blob, file) == file.digest:
                        self._count(file.size_bytes)
                        return self._pointer(file, blob)
                    blob.unlink()
                self._download(file, partial)
                partial.replace(blob)
            return self._pointer(file, blob)

    def _download(self, file: HubFile, partial: Path) -> None:
        """Fetch a file to `partial` and check it. If a beginning left by an earlier download was wrong, start again."""
        resumed = partial.exists() and partial.stat().st_size > 0
        self._fill(file, partial)
        found = _digest(partial, file)
        if found != file.digest and resumed:
            self._count(-partial.stat().st_size)
            partial.unlink()
            self._fill(file, partial)
            found = _digest(partial, file)
        if found != file.digest:
            partial.unlink()
            raise DataError(
                f"{file.path}: {file.algorithm} {found}, the hub says {file.digest}; "
                "the file was removed and nothing imported"
            )

    def _fill(self, file: HubFile, partial: Path) -> None:
        """Append what is missing until the size is right; a dropped connection resumes where it stopped."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        what = f"{file.path} of {REPO_TYPE} {self.repository.repo_id}"
        failures = 0
        with partial.open("ab") as output:
            if output.tell() > file.size_bytes:
                self._restart(output, counted=False)
            self._count(output.tell())
            while output.tell() < file.size_bytes:
                before = output.tell()
                try:
                    with hub_errors(what, retried=True):
                        self._stream(file, output)
                    if output.tell() < file.size_bytes:
                        raise httpx2.RemoteProtocolError("the answer ended early")
                except (httpx2.TransportError, HfHubHTTPError) as error:
                    failures = 1 if output.tell() > before else failures + 1
                    if failures > len(RETRY_WAITS_S):
                        with hub_errors(what):
                            raise error
                    self._pause(max(RETRY_WAITS_S[failures - 1], _asked_wait_s(error)))
            output.flush()
            os.fsync(output.fileno())

    def _stream(self, file: HubFile, output: BinaryIO) -> None:
        """One request for the rest of a file. A server that ignores the range sends all of it again."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        repository = self.repository
        url = hf_hub_url(
            repository.repo_id, file.path, repo_type=REPO_TYPE, revision=repository.revision, endpoint=endpoint()
        )
        headers = {**build_hf_headers(library_name=LIBRARY), "Accept-Encoding": "identity"}
        if output.tell():
            headers["Range"] = f"bytes={output.tell()}-"
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
            hf_raise_for_status(response)
            if response.status_code != 206 and output.tell():
                self._restart(output)
            for chunk in response.iter_bytes():
                if self._stop.is_set():
                    raise _StoppedError
                output.write(chunk)
                output.flush()  # A kill now loses nothing of it.
                self._count(len(chunk))
                if output.tell() > file.size_bytes:
                    self._restart(output)
                    raise DataError(f"{file.path}: the hub sends more than the {file.size_bytes} bytes it says")

    def _restart(self, output: BinaryIO, *, counted: bool = True) -> None:
        """Empty a file that was opened for appending."""
        if counted:
            self._count(-output.tell())
        output.seek(0)
        output.truncate()

    def _paths(self, file: HubFile) -> tuple[Path, Path]:
        """(path of the whole file, path of its beginning)."""
        blob = self.folder / "blobs" / file.digest
        return blob, blob.with_name(f"{file.digest}.incomplete")

    def _pointer(self, file: HubFile, blob: Path) -> Path:
        """The file under its own name; the blob itself where the file system has no links."""
        pointer = self.folder / "snapshots" / self.repository.revision / file.path
        if not (pointer.exists() and pointer.samefile(blob)):
            try:
                pointer.parent.mkdir(parents=True, exist_ok=True)
                pointer.unlink(missing_ok=True)
                pointer.symlink_to(os.path.relpath(blob, pointer.parent))
            except OSError:
                return blob
        return pointer

    def _pause(self, wait_s: float) -> None:
        if self._stop.wait(wait_s):
            raise _StoppedError

    def _count(self, num_bytes: int) -> None:
        with self._progress_lock:
            self._progress(num_bytes)


class _StoppedError(Exception):
    """Another file failed, or the user pressed Ctrl-C."""


def _asked_wait_s(error: Exception) -> float:
    """Seconds that the answer asks to wait before the next request, at most MAX_ASKED_WAIT_S."""
    response = getattr(error, "response", None)
    asked = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(asked), MAX_ASKED_WAIT_S) if asked.isdecimal() else 0.0


@contextlib.contextmanager
def _disk_errors(path: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"cannot write {path} to {folder}: {reason}; what was downloaded is kept") from None


def _digest(path: Path, file: HubFile) -> str:
    """Hash of a file's bytes, of the kind that the hub gave for it."""
    with path.open("rb") as content:
        if len(file.digest) == 64:
            return hashlib.file_digest(content, "sha256").hexdigest()
        header = f"blob {path.stat().st_size}\0".encode()
        return hashlib.sha1(header + content.read(), usedforsecurity=False).hexdigest()
