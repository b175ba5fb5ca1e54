"""Checkpoints: a safetensors file and a JSON file, engine-neutral, complete or absent.

`step-00000040.safetensors` is the result of `Engine.save_state`. `step-00000040.json` says what it
belongs to and carries its SHA-256. The JSON is renamed into place last, so a checkpoint without one
does not exist, and one whose checksum differs is damaged.

Kept are the last few and the best: of those written right after a validation, the one with the fewest bits per byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_from_bytes
from safetensors.numpy import save_file as write_tensors

from shared.errors import RunError
from shared.files import remove_temporaries, replacing, write_atomically
from shared.optim import state_shapes
from shared.spec import Spec

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckpointInfo:
    """The JSON half: where the run stood after `step` steps. `elapsed_s` is training time alone; from `step_s` and
    `slowest_step_s`, the mean and maximum of recent steps, a run by the clock knows whether another one fits.

    The two validations are the events of the last one and of the best one so far.
    """

    step: int
    elapsed_s: float
    engine: str
    spec_id: str
    spec: dict[str, Any]
    loader: dict[str, Any]
    last_validation: dict[str, Any] | None = None
    best_validation: dict[str, Any] | None = None
    step_s: float = 0.0
    slowest_step_s: float = 0.0
    format_version: int = FORMAT_VERSION
    state_bytes: int = 0
    state_sha256: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back and verified; `warnings` names the damaged ones that were passed over."""

    info: CheckpointInfo
    state: dict[str, np.ndarray]
    path: Path
    warnings: list[str] = field(default_factory=list)


def checkpoint_bytes(spec: Spec) -> int:
    """Size of the tensors' file of every checkpoint of a spec: eight bytes, the header of safetensors (JSON padded to a
    multiple of eight bytes, tensors in the order of their names) and the state."""
    tensors: dict[str, Any] = {}
    end = 0
    for name, shape in sorted(state_shapes(spec).items()):
        start, end = end, end + np.dtype(np.float32).itemsize * math.prod(shape)
        tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(tensors, separators=(",", ":"))
    return 8 + -(-len(header) // 8) * 8 + end


class CheckpointStore:
    """The checkpoints of one run: the last `keep` of them, and the best."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def tidy(self) -> None:
        """Make the folder; remove what a killed process left in it: temporary files, tensors without their JSON."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)
        # safetensors writes to a temporary file of its own.
        for path in self.folder.glob(".tmp*"):
            path.unlink()
        for path in self.folder.glob("step-*.safetensors"):
            if not path.with_suffix(".json").exists():
                path.unlink()

    def save(self, info: CheckpointInfo, state: Mapping[str, np.ndarray]) -> Path:
        """Write a checkpoint, drop what is neither among the last `keep` nor the best; returns the path of its tensors.

        Raises RunError (disk full, no permission); the earlier checkpoints are then untouched.
        """
        path = self._tensors(info.step)
        recorded = self._read_json(info.step).get("state_sha256")
        digest = ""
        try:
            size, digest = _write_state(path, state)
            complete = {**asdict(info), "state_bytes": size, "state_sha256": digest}
            write_atomically(path.with_suffix(".json"), json.dumps(complete, indent=1, allow_nan=False).encode())
        except OSError as error:
            # An earlier checkpoint of the same step is still whole if its tensors are the ones recorded for it.
            if digest and digest != recorded:
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            latest = self.latest_path()
            kept = f"the last good checkpoint is {latest}" if latest else "there is no earlier checkpoint"
            reason = (error.strerror or str(error)).lower()
            raise RunError(f"cannot write checkpoint {path}: {reason}; {kept}") from None
        best = self._by_score()[:1]
        for step in self.steps()[: -self.keep]:
            if step not in best:
                self._tensors(step).with_suffix(".json").unlink()
                self._tensors(step).unlink(missing_ok=True)
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
        return self._load_first(reversed(self.steps()))

    def load_best(self) -> Checkpoint | None:
        """The checkpoint with the lowest validation score, of equal ones the newest; None where none was validated.

        A checkpoint has a score if it was written right after a validation. A damaged one gives way to the next best.
        Changes nothing. Raises RunError if all that were validated are damaged.
        """
        return self._load_first(self._by_score())

    def set_aside_after(self, step: int) -> None:
        """Rename later, damaged checkpoints to `*.damaged`, so that training can write those steps again."""
        for later in (other for other in self.steps() if other > step):
            for path in (self._tensors(later).with_suffix(".json"), self._tensors(later)):
                if path.exists():
                    path.replace(path.with_name(path.name + ".damaged"))

    def _load_first(self, steps: Iterable[int]) -> Checkpoint | None:
        """The first of these that is whole."""
        warnings: list[str] = []
        for step in steps:
            try:
                info, state = self._load(step)
            except _Damaged as damage:
                warnings.append(f"checkpoint {self._tensors(step)} is damaged ({damage})")
                continue
            return Checkpoint(info, state, self._tensors(step), warnings)
        if warnings:
            raise RunError(f"no usable checkpoint: {'; '.join(warnings)}; start again under another --run name")
        return None

    def _by_score(self) -> list[int]:
        """Steps whose checkpoint has a validation score, the best first."""
        scores = {step: _validation_bpb(step, self._read_json(step)) for step in self.steps()}
        scored = [step for step, bpb in scores.items() if bpb is not None]
        return sorted(scored, key=lambda step: (scores[step], -step))

    def _read_json(self, step: int) -> dict[str, Any]:
        """The JSON half as it is; empty where it cannot be read."""
        try:
            values = json.loads(self._tensors(step).with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

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

    def _tensors(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"


def _write_state(path: Path, state: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """Write tensors atomically; returns (bytes, SHA-256) of the file. Raises OSError.

    The library's `save` would keep the interpreter to itself for seconds; writing to a file, it lets training continue.
    """
    with replacing(path) as temporary:
        try:
            write_tensors({name: np.ascontiguousarray(value) for name, value in state.items()}, temporary)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None
        # The library makes files that only their owner can read.
        temporary.chmod(path.parent.stat().st_mode & 0o666)
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return temporary.stat().st_size, digest


def _validation_bpb(step: int, values: Mapping[str, Any]) -> float | None:
    """The score of a checkpoint's own weights, None if the last validation was of earlier ones."""
    validation = values.get("last_validation")
    if not isinstance(validation, dict) or validation.get("step") != step:
        return None
    bpb = validation.get("bpb")
    return bpb if isinstance(bpb, float) and math.isfinite(bpb) else None


class _Damaged(Exception):
    """A checkpoint that cannot be used; the message says why."""
