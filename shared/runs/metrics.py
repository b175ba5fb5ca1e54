"""metrics.jsonl: one JSON object per logged event, appended whole and at once.

Every record has `event` and `step`, the number of optimizer steps done. Events: `start`, `resume`,
`step`, `validation`, `checkpoint`, `interrupted`, `failed`, `finished`, and at any end `stages`, the seconds of each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from shared.errors import RunError
from shared.files import write_atomically

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """All complete records of a metrics file, in order; a line that a killed process cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def last_ending(records: Sequence[Record]) -> Record | None:
    """The `finished` record of a run; None if it did not finish, or was trained further since."""
    found = [record for record in records if record["event"] in ("step", "finished")]
    return found[-1] if found and found[-1]["event"] == "finished" else None


class MetricsLog:
    """The metrics file of a run, open for appending from a given step on."""

    def __init__(self, path: Path, after_step: int) -> None:
        """Keep the records up to `after_step`, drop later ones: they are about to happen again."""
        self.path = path
        self.kept = [record for record in read_records(path) if record["step"] <= after_step]
        try:
            write_atomically(path, b"".join(_line(record) for record in self.kept))
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise self._cannot_write(error) from None

    def append(self, event: str, step: int, **values: Any) -> Record:
        """Write one record in one system call; returns it. Raises RunError if the file cannot be written."""
        record = {"event": event, "step": step, **values}
        try:
            os.write(self._descriptor, _line(record))
        except OSError as error:
            raise self._cannot_write(error) from None
        return record

    def flush(self) -> None:
        """Wait until what was appended is on disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._cannot_write(error) from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cannot_write(self, error: OSError) -> RunError:
        return RunError(f"cannot write {self.path}: {(error.strerror or str(error)).lower()}")


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
