"""Checkpoints: a safetensors file and a JSON file, engine-neutral, complete or absent.

`step-00000040.safetensors` is the result of `Engine.save_state`. `step-00000040.json` says what it
belongs to and carries its SHA-256. The JSON is renamed into place last, so a checkpoint without one
does not exist, and one whose checksum differs is damaged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_from_bytes
from safetensors.numpy import save as tensors_to_bytes

from shared.errors import RunError
from shared.files import remove_temporaries, write_atomically

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckpointInfo:
    """The JSON half: where the run stood after `step` steps. `elapsed_s` is training time alone.

    The two validations are the metrics records of the last one and of the best one so far.
    """

    step: int
    elapsed_s: float
    engine: str
    spec_id: str
    spec: dict[str, Any]
    loader: dict[str, Any]
    last_validation: dict[str, Any] | None = None
    best_validation: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION
    state_bytes: int = 0
    state_sha256: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back and verified; `warnings` names the damaged newer ones that were passed over."""

    info: CheckpointInfo
    state: dict[str, np.ndarray]
    path: Path
    warnings: list[str] = field(default_factory=list)


class CheckpointStore:
    """The checkpoints of one run, the last `keep` of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def tidy(self) -> None:
        """Make the folder; remove what a killed process left in it: temporary files, tensors without their JSON."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)
        for path in self.folder.glob("step-*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink()

    def save(self, info: CheckpointInfo, state: Mapping[str, np.ndarray]) -> Path:
        """Write a checkpoint, drop the oldest beyond `keep`; returns the path of its tensors.

        Raises RunError (disk full, no permission); the earlier checkpoints are then untouched.
        """
        path = self._tensors(info.step)
        content = tensors_to_bytes(dict(state))
        digest = hashlib.sha256(content).hexdigest()
        complete = {**asdict(info), "state_bytes": len(content), "state_sha256": digest}
        text = json.dumps(complete, indent=1, allow_nan=False)
        try:
            write_atomically(path, content)
            write_atomically(path.with_suffix(".json"), text.encode())
        except OSError as error:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise RunError(self._cannot_write(path, error)) from None
        for step in self.steps()[: -self.keep]:
            self._remove(step)
        return path

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        names = (path.stem.removeprefix("step-") for path in self.folder.glob("step-*.json"))
        return sorted(int(name) for name in names if name.isdecimal())

    def latest_path(self) -> Path | None:
        """The newest checkpoint's tensors, None where there is none."""
        steps = self.steps()
        return self._tensors(steps[-1]) if steps else None

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none at all. Changes nothing.

        Damaged newer ones are passed over and reported. Raises RunError if all are damaged.
        """
        warnings: list[str] = []
        for step in reversed(self.steps()):
            try:
                info, state = self._load(step)
            except _Damaged as damage:
                warnings.append(f"checkpoint {self._tensors(step)} is damaged ({damage})")
                continue
            return Checkpoint(info, state, self._tensors(step), warnings)
        if warnings:
            raise RunError(f"no usable checkpoint: {'; '.join(warnings)}; start again under another --run name")
        return None

    def set_aside_after(self, step: int) -> None:
        """Rename later, damaged checkpoints to `*.damaged`, so that training can write those steps anew."""
        for later in (other for other in self.steps() if other > step):
            for path in (self._tensors(later).with_suffix(".json"), self._tensors(later)):
                if path.exists():
                    path.replace(path.with_name(path.name + ".damaged"))

    def _load(self, step: int) -> tuple[CheckpointInfo, dict[str, np.ndarray]]:
        path = self._tensors(step)
        try:
            values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise _Damaged(f"{Path(error.filename).name} is missing") from None
        except ValueError:
            raise _Damaged("its JSON file cannot be read") from None
        if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
            raise _Damaged(f"its JSON file is not of format {FORMAT_VERSION}")
        if len(content) != values.get("state_bytes"):
            raise _Damaged(f"{len(content)} bytes instead of {values.get('state_bytes')}")
        if hashlib.sha256(content).hexdigest() != values.get("state_sha256"):
            raise _Damaged("its SHA-256 differs from the recorded one")
        try:
            info, state = CheckpointInfo(**values), tensors_from_bytes(content)
        except (TypeError, SafetensorError) as error:
            raise _Damaged(str(error)) from None
        if info.step != step:
            raise _Damaged(f"it says step {info.step}")
        return info, state

    def _remove(self, step: int) -> None:
        self._tensors(step).with_suffix(".json").unlink()
        self._tensors(step).unlink(missing_ok=True)

    def _tensors(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def _cannot_write(self, path: Path, error: OSError) -> str:
        latest = self.latest_path()
        kept = f"the last good checkpoint is {latest}" if latest else "there is no earlier checkpoint"
        return f"cannot write checkpoint {path}: {(error.strerror or str(error)).lower()}; {kept}"


class _Damaged(Exception):
    """A checkpoint that cannot be used; the message says why."""
