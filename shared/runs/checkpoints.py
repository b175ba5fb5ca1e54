"""Checkpoints: a safetensors file and a JSON file, engine-neutral, complete or absent.

`step-00000040.safetensors` is the result of `Engine.save_state`. `step-00000040.json` says what it
belongs to and carries the SHA-256 of the tensors and of itself. The JSON is renamed into place last, so a
checkpoint without one does not exist, and one whose checksum differs is damaged.

Format 1 had no checksum of the JSON. It is still read, with every value checked as far as that can be done.

Kept are the last few and the best: of those written right after a validation, the one with the fewest bits per byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import save_file as write_tensors

from shared.errors import RunError, SpecError, problem_text
from shared.files import check_regular, remove_temporaries, replacing, write_atomically
from shared.optim import state_shapes
from shared.parsing import parse_tensors, read_json_object
from shared.runs.observer import ValidationReport
from shared.spec import Spec, stored_spec

FORMAT_VERSION = 2
UNSIGNED_VERSION = 1
# The key of the checksum in the JSON: over all the others.
SIGNATURE = "json_sha256"
# In place of the score of a checkpoint whose JSON is damaged: below all others.
DAMAGED = -math.inf
_STEP = re.compile(r"step-([0-9]{8,18})")
T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointInfo:
    """The JSON half: where the run stood after `step` steps. `elapsed_s` is training time alone; from `step_s` and
    `slowest_step_s`, the mean and maximum of recent steps, a run by the clock knows whether another one fits.

    The two validations are the last one and the best one so far.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    step: int
    elapsed_s: float
    engine: str
    spec_id: str
    spec: dict[str, Any]
    loader: dict[str, Any]
    last_validation: ValidationReport | None = None
    best_validation: ValidationReport | None = None
    step_s: float = 0.0
    slowest_step_s: float = 0.0
    format_version: int = FORMAT_VERSION
    state_bytes: int = 0
    state_sha256: str = ""


_INFO = TypeAdapter(CheckpointInfo)


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
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RunError(f"{self.folder} exists and is not a directory") from None
        remove_temporaries(self.folder)
        # safetensors writes to a temporary file of its own.
        for path in self.folder.glob(".tmp*"):
            _unlink(path)
        for path in self.folder.glob("step-*.safetensors"):
            if not os.path.lexists(path.with_suffix(".json")):
                _unlink(path)

    def save(self, info: CheckpointInfo, state: Mapping[str, np.ndarray]) -> Path:
        """Write a checkpoint, drop what is neither among the last `keep` nor the best; returns the path of its tensors.

        Raises RunError (disk full, no permission); the earlier checkpoints are then untouched.
        """
        path = self._tensors(info.step)
        recorded, digest = self._recorded_sha256(info.step), ""
        try:
            size, digest = _write_state(path, state)
            complete = {**asdict(info), "state_bytes": size, "state_sha256": digest}
            content = json.dumps(signed(complete), indent=1, allow_nan=False).encode()
            write_atomically(path.with_suffix(".json"), content)
        except OSError as error:
            # An earlier checkpoint of the same step is still whole if its tensors are the ones recorded for it.
            if digest and digest != recorded:
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            latest = self.latest_path()
            kept = f"the last good checkpoint is {latest}" if latest else "there is no earlier checkpoint"
            reason = (error.strerror or str(error)).lower()
            raise RunError(f"cannot write checkpoint {path}: {reason}; {kept}") from None
        self._drop_old()
        return path

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        named = (_STEP.fullmatch(path.stem) for path in self.folder.glob("step-*.json"))
        return sorted(int(match[1]) for match in named if match)

    def latest_path(self) -> Path | None:
        """The newest checkpoint's tensors, None where there is none."""
        steps = self.steps()
        return self._tensors(steps[-1]) if steps else None

    def latest_info(self) -> CheckpointInfo | None:
        """The newest JSON half that is whole, without a look at its tensors; None where there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(_Damaged):
                return self._read_info(step)
        return None

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there is none at all. Changes nothing.

        Damaged newer ones are passed over and reported. Raises RunError if all are damaged.
        """
        return self._load_first(reversed(self.steps()))

    def load_step(self, step: int) -> Checkpoint:
        """The checkpoint of one step. Raises RunError if there is none, or it is damaged."""
        steps = self.steps()
        if step not in steps:
            raise RunError(f"{self.folder}: no checkpoint of step {step}; steps: {_listed(steps)}")
        try:
            return Checkpoint(*self._load(step), self._tensors(step))
        except _Damaged as damage:
            raise RunError(f"checkpoint {self._tensors(step)} is damaged ({damage})") from None

    def load_best(self) -> Checkpoint | None:
        """The checkpoint with the lowest validation score, of equal ones the newest; None where none was validated.

        A checkpoint has a score if it was written right after a validation. A damaged one gives way to the next best.
        Changes nothing. Raises RunError if all that were validated are damaged.
        """
        return self._load_first(self._by_score())

    def set_aside_after(self, step: int) -> None:
        """Rename later, damaged checkpoints to `*.damaged`, so that training can write those steps again.

        Then drop what a process that was killed after a save could not.
        """
        for later in (other for other in self.steps() if other > step):
            for path in (self._tensors(later).with_suffix(".json"), self._tensors(later)):
                if os.path.lexists(path):
                    names = (path.with_name(f"{path.name}.damaged{suffix}") for suffix in ("", *range(1, 1_000_000)))
                    path.replace(next(name for name in names if not os.path.lexists(name)))
        self._drop_old()

    def _drop_old(self) -> None:
        """Remove the checkpoints that are neither among the last `keep` nor the best."""
        best = [step for step in self._by_score() if self._score(step) != DAMAGED][:1]
        for step in self.steps()[: -self.keep]:
            if step not in best:
                _unlink(self._tensors(step).with_suffix(".json"))
                _unlink(self._tensors(step))

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
            more = f" and {len(warnings) - 1} more" if len(warnings) > 1 else ""
            raise RunError(f"no usable checkpoint: {warnings[0]}{more}; start again under another --run name")
        return None

    def _by_score(self) -> list[int]:
        """Steps whose checkpoint has a validation score, the best first; before them those whose JSON is damaged: one
        of them may be the best."""
        scores = {step: self._score(step) for step in self.steps()}
        scored = [step for step, bpb in scores.items() if bpb is not None]
        return sorted(scored, key=lambda step: (scores[step], -step))

    def _score(self, step: int) -> float | None:
        """The score of a checkpoint's own weights, None if the last validation was of earlier ones."""
        try:
            validation = self._read_info(step).last_validation
        except _Damaged:
            return DAMAGED
        return validation.bpb if validation is not None and validation.step == step else None

    def _recorded_sha256(self, step: int) -> str:
        """The SHA-256 of the tensors that the JSON of a step records; empty where there is none."""
        try:
            return self._read_info(step).state_sha256
        except _Damaged:
            return ""

    def _read_info(self, step: int) -> CheckpointInfo:
        """The JSON half. Raises _Damaged."""
        path = self._tensors(step).with_suffix(".json")
        values = _read(path, read_json_object)
        signature, version = values.pop(SIGNATURE, None), values.get("format_version")
        if version not in (UNSIGNED_VERSION, FORMAT_VERSION):
            raise _Damaged(f"its JSON file is not of format {UNSIGNED_VERSION} or {FORMAT_VERSION}")
        if (signature is not None or version == FORMAT_VERSION) and signature != _signature(values):
            raise _Damaged("the SHA-256 of its JSON file differs from the recorded one")
        try:
            # Not from the values: there pydantic takes nothing but a CheckpointInfo where it is strict.
            info = _INFO.validate_json(json.dumps(values))
            if signature is None:
                stored_spec(info.spec, origin="its spec")
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "content"
            raise _Damaged(f"its JSON file: {where}: {problem_text(problem['msg'])}") from None
        except SpecError as error:
            raise _Damaged(str(error)) from None
        if info.step != step:
            raise _Damaged(f"it says step {info.step}")
        return info

    def _load(self, step: int) -> tuple[CheckpointInfo, dict[str, np.ndarray]]:
        info, content = self._read_info(step), _read(self._tensors(step), Path.read_bytes)
        if len(content) != info.state_bytes:
            raise _Damaged(f"{len(content)} bytes instead of {info.state_bytes}")
        if hashlib.sha256(content).hexdigest() != info.state_sha256:
            raise _Damaged("its SHA-256 differs from the recorded one")
        try:
            state = parse_tensors(content)
        except ValueError as error:
            raise _Damaged(str(error)) from None
        for name, value in state.items():
            if value.dtype != np.float32 or not np.isfinite(value).all():
                raise _Damaged(f"its tensor {name[:80]!r} must be of finite float32 numbers")
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


def _read(path: Path, read: Callable[[Path], T]) -> T:
    """What a file of a checkpoint holds. Raises _Damaged if it cannot be read: one file must not end a run."""
    try:
        check_regular(path)
        return read(path)
    except FileNotFoundError:
        raise _Damaged(f"{path.name} is missing") from None
    except OSError as error:
        raise _Damaged(f"{path.name}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise _Damaged(f"its JSON file cannot be read: {error}") from None


def signed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a checkpoint's JSON with their checksum."""
    unsigned = {name: value for name, value in values.items() if name != SIGNATURE}
    return {**unsigned, SIGNATURE: _signature(unsigned)}


def _signature(values: Mapping[str, Any]) -> str:
    """SHA-256 of values, however they are written down."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _unlink(path: Path) -> None:
    """Remove a file or link; a folder is none of ours."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)


def _listed(steps: list[int], most: int = 8) -> str:
    shown = ", ".join(map(str, steps[-most:])) or "none"
    return f"..., {shown}" if len(steps) > most else shown


class _Damaged(Exception):
    """A checkpoint that cannot be used; the message says why."""
