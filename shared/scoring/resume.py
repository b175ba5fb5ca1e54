"""The state of a score that is under way, in a file beside it: after a kill the same command resumes and ends with the
same score to the last digit (docs/techniques.md 14.5)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as arrays_from_bytes
from safetensors.numpy import save as arrays_to_bytes

from shared.files import check_regular, write_atomically

# Seconds between two writes: what a kill costs at most, apart from the pass in progress.
EVERY_S = 30.0
# What the name of a score document has behind it in that of its state.
STATE_SUFFIX = ".state"
_DIGEST_BYTES = hashlib.sha256().digest_size
_PASSES = "passes"

Arrays = Mapping[str, np.ndarray]


class ScoreState:
    """The file `path` with the arrays of a score, float64 or as they are, after a number of passes.

    It is bound to all that determines the score. A file that is of another score or damaged is not used, and `tell`
    says so in a line; so it does when a score resumes.
    """

    def __init__(self, path: Path, tell: Callable[[str], None] = lambda line: None, every_s: float = EVERY_S) -> None:
        self.path, self._tell, self._every_s = path, tell, every_s
        self._bound = b""
        self._written_s = time.monotonic()

    @classmethod
    def beside(cls, path: Path, tell: Callable[[str], None]) -> ScoreState:
        """The state of the score whose document is to be `path`."""
        return cls(path.with_name(path.name + STATE_SUFFIX), tell)

    def bind(self, facts: Mapping[str, Any]) -> None:
        """Take `facts`, plain JSON values, as what determines the score."""
        self._bound = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).digest()

    def load(self, num_passes: int) -> tuple[int, Arrays]:
        """(passes that were done, the arrays after them); (0, none) where the score begins. Raises OSError for a path
        that cannot be read."""
        if not self.path.exists():
            return 0, {}
        check_regular(self.path)
        content = self.path.read_bytes()
        digest, bound, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES : 2 * _DIGEST_BYTES], content[64:]
        if hashlib.sha256(bound + body).digest() != digest:
            self._tell(f"{self.path} is damaged: the score begins again")
            return 0, {}
        if bound != self._bound:
            self._tell(f"{self.path} is of another score, which will not resume: this one begins")
            return 0, {}
        try:
            arrays = arrays_from_bytes(body)
            done = int(arrays.pop(_PASSES)[0])
        except (SafetensorError, KeyError, IndexError):
            done = 0
        if not 0 < done <= num_passes:
            return 0, {}
        self._tell(f"resumes after {done:,} of {num_passes:,} passes, from {self.path}")
        return done, arrays

    def offer(self, done: int, arrays: Callable[[], Arrays]) -> None:
        """Write the arrays after `done` passes, unless that was done a moment ago. Raises OSError."""
        if time.monotonic() - self._written_s < self._every_s:
            return
        kept = {_PASSES: np.array([done], np.int64), **arrays()}
        body = arrays_to_bytes({name: np.ascontiguousarray(value) for name, value in kept.items()})
        write_atomically(self.path, hashlib.sha256(self._bound + body).digest() + self._bound + body)
        self._written_s = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the score is written."""
        self.path.unlink(missing_ok=True)


def weights_sha256(weights: Mapping[str, np.ndarray]) -> str:
    """Hash of weights by name, hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(weights[name], np.float32).tobytes())
    return digest.hexdigest()
