"""The run directory: `runs/NAME/` with everything one run leaves behind.

spec.toml           the resolved spec
environment.json    versions, git commit, device, command line, data; earlier starts of the same run
metrics.jsonl       one JSON object per logged event
checkpoints/        the last few and the best, engine-neutral
artifact.btw        the packed model
score.json          its score with everything that qualifies it
documents.safetensors  nats and bytes of every scored document, for paired comparisons
report.html         all of the above on one page
trace.json          with --profile: what some training steps did, for a trace viewer
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import RunError
from shared.files import check_regular, remove_temporaries, try_lock, write_atomically
from shared.parsing import read_json_object
from shared.spec import Spec, read_stored_spec, spec_to_toml
from shared.spec.difference import first_difference, free_in_run

# Types of the values of environment.json that readers take for granted.
ENVIRONMENT = {"data": dict, "git": dict | None, "packages": dict, "ranks": int, "earlier_starts": list}
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RunDirectory:
    """Paths of one run, and a lock that keeps a second process out of it, if its file system `has_locks`."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.spec_path = path / "spec.toml"
        self.environment_path = path / "environment.json"
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints_path = path / "checkpoints"
        self.artifact_path = path / "artifact.btw"
        self.score_path = path / "score.json"
        self.documents_path = path / "documents.safetensors"
        self.report_path = path / "report.html"
        self.trace_path = path / "trace.json"
        self.has_locks = True
        self._lock: int | None = None

    def read_spec(self) -> Spec:
        """The resolved spec of the run. Raises RunError if there is none."""
        if not self.spec_path.is_file():
            raise RunError(f"{self.path}: not a run directory (it has no spec.toml)")
        return read_stored_spec(self.spec_path)

    def write_spec(self, spec: Spec) -> None:
        """Store the resolved spec."""
        write_atomically(self.spec_path, spec_to_toml(spec).encode())

    def read_train_text(self) -> str:
        """SHA-256 of the text that the run was trained on. Raises RunError if environment.json lacks it."""
        return train_text(self.read_environment(), self.environment_path)

    def read_environment(self) -> dict[str, Any]:
        """Read environment.json back. Raises RunError if it is missing or damaged."""
        try:
            check_regular(self.environment_path)
            values = read_json_object(self.environment_path)
        except (OSError, ValueError):
            raise RunError(f"{self.environment_path}: missing or not a JSON object") from None
        data = values.get("data", {})
        parts = {f"data.{role}": part for role, part in data.items()} if isinstance(data, dict) else {}
        for key, value in {**{key: values[key] for key in ENVIRONMENT if key in values}, **parts}.items():
            if not isinstance(value, kind := ENVIRONMENT.get(key, dict)):
                raise RunError(f"{self.environment_path}: {key} must be of type {getattr(kind, '__name__', kind)}")
        return values

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Store what this start of the run was made with; earlier starts are kept under `earlier_starts`."""
        earlier: list[Any] = []
        if os.path.lexists(self.environment_path):
            try:
                previous = self.read_environment()
            except RunError as error:
                raise RunError(f"{error}; delete it to continue") from None
            earlier = [*previous.pop("earlier_starts", []), previous]
        content = json.dumps({**environment, "earlier_starts": earlier}, indent=1)
        write_atomically(self.environment_path, content.encode() + b"\n")

    def tidy(self) -> None:
        """Remove what killed processes left half-written."""
        remove_temporaries(self.path)

    def lock(self) -> None:
        """Claim the directory until `unlock` or the end of the process. Raises RunError if another one has it."""
        descriptor = os.open(self.path, os.O_RDONLY)
        found = try_lock(descriptor)
        if found is False:
            # Again after a moment, in which `is_in_use` of a reader is over.
            time.sleep(0.1)
            found = try_lock(descriptor)
        if found is False:
            os.close(descriptor)
            raise RunError(f"run {self.path} is in use by another process")
        self._lock, self.has_locks = descriptor, found is not None

    def is_in_use(self) -> bool | None:
        """Whether a process of this machine has claimed the directory; None where its file system has no locks."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            free = try_lock(descriptor, fcntl.LOCK_SH)
            return None if free is None else not free
        finally:
            os.close(descriptor)

    def unlock(self) -> None:
        """Release the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def train_text(environment: Mapping[str, Any], path: Path) -> str:
    """SHA-256 of the training text in an environment that was read from `path`. Raises RunError if it is not there."""
    try:
        return str(environment["data"]["train"]["sha256"])
    except (KeyError, TypeError):
        raise RunError(f"{path}: no data.train.sha256, the text that was trained on") from None


def open_run(runs_dir: Path, name: str | None, spec: Spec, engine_name: str, *, resume: bool) -> RunDirectory:
    """Lock the directory of a new run, or with `resume` of one that may exist.

    Without a name a new run is called SPEC-ENGINE-N. Raises RunError for a name that exists, a name that is
    not a plain file name, and a resumed run whose spec trains something else.
    """
    if name is None:
        if resume:
            raise RunError(f"--resume needs --run NAME; runs in {runs_dir}: {_listing(runs_dir)}")
        run = _claim_new(runs_dir, f"{spec.name}-{engine_name}")
    elif not NAME_PATTERN.fullmatch(name):
        raise RunError(f"run name {name!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")
    else:
        run = _claim_named(runs_dir / name, resume)
    run.lock()
    run.tidy()
    if run.spec_path.exists():
        check_same_training(run.read_spec(), spec, str(run.path))
    run.write_spec(spec)
    return run


def check_same_training(stored: Spec, given: Spec, where: str) -> None:
    """Raise RunError naming the first field in which two specs train something different."""
    found = first_difference(stored, given, free_in_run(stored))
    if found is not None:
        raise RunError(
            f"{where} was started with {found.key} = {found.first!r}, now it is {found.second!r}: "
            "resume with the same spec or start another run"
        )


def _claim_named(path: Path, resume: bool) -> RunDirectory:
    """Claim the folder at `path` by creating it; with `resume` it may exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise RunError(f"{path} exists and is not a directory") from None
        if not resume:
            raise RunError(f"run {path} exists; continue it with --resume or choose another --run name") from None
    return RunDirectory(path)


def _claim_new(runs_dir: Path, stem: str) -> RunDirectory:
    """Claim the folder STEM-N with the smallest N that is free."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = runs_dir / f"{stem}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return RunDirectory(path)
    raise AssertionError("unreachable")


def _listing(runs_dir: Path, most: int = 8) -> str:
    if not runs_dir.is_dir():
        return "none"
    names = sorted(path.name for path in runs_dir.iterdir() if (path / "spec.toml").is_file())
    shown = ", ".join(names[-most:]) or "none"
    return f"..., {shown}" if len(names) > most else shown
