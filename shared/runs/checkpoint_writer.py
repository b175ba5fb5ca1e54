"""Checkpoints written while training continues: one at a time, in a thread.

The loop hands over a copy of the state in host memory and continues; hashing and writing release the interpreter, so
that they cost training next to nothing. At a later turn the loop learns whether the checkpoint was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.runs.checkpoints import CheckpointInfo, CheckpointStore


@dataclass(frozen=True)
class WrittenCheckpoint:
    """A checkpoint on disk; `path` is that of its tensors."""

    step: int
    path: Path


class CheckpointWriter:
    """Writes to a store in the background, at most one checkpoint at a time.

    `before_write` is called in the thread first: it flushes the files that must never be behind a checkpoint.
    """

    def __init__(self, store: CheckpointStore, before_write: Callable[[], None] = lambda: None) -> None:
        self.store, self.before_write = store, before_write
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[WrittenCheckpoint] | None = None

    def start(self, info: CheckpointInfo, state: Mapping[str, np.ndarray]) -> None:
        """Begin to write. The arrays must be copies that nobody changes, and the last write must be collected."""
        assert self._writing is None, "one checkpoint at a time: collect the last one first"
        self._writing = self._executor.submit(self._write, info, state)

    def collect(self, *, wait: bool = False) -> WrittenCheckpoint | None:
        """The checkpoint that was being written, once, when it is on disk; None otherwise.

        Raises RunError, once, if it could not be written; the earlier checkpoints are then untouched.
        """
        writing = self._writing
        if writing is None or not (wait or writing.done()):
            return None
        try:
            return writing.result()
        finally:
            self._writing = None

    def close(self) -> None:
        """Wait for the write in flight, whether it succeeds or not, and end the thread."""
        self._executor.shutdown(wait=True)

    def _write(self, info: CheckpointInfo, state: Mapping[str, np.ndarray]) -> WrittenCheckpoint:
        self.before_write()
        return WrittenCheckpoint(info.step, self.store.save(info, state))
