"""The sketch of a split, stored with its shards so that no text has to be read again to compare it with another.

SPLIT_sketch.safetensors holds the arrays of `data.sketch.Sketch`; its metadata name the split by the hash that the
manifest has for it, and carry a hash of the sketch. A sketch of another text, a damaged one or one of another format
counts as missing, and what is missing is made from the text and kept.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data.manifest import SplitEntry
from data.sketch import Sketch, sketch_documents
from shared.files import write_atomically

# What makes sketches of one text differ from format to format: folding, windows, hashes, levels.
FORMAT = "1"
_ARRAYS = ("counts", "documents", "num_bytes", "windows")


def sketch_path(folder: Path, split: str) -> Path:
    """The file of the sketch of a split in its dataset's folder."""
    return folder / f"{split}_sketch.safetensors"


def write_sketch(path: Path, sketch: Sketch, sha256: str) -> None:
    """Keep the sketch of the split with this hash. Raises OSError."""
    arrays = {name: getattr(sketch, name) for name in _ARRAYS}
    write_atomically(path, save(arrays, _metadata(str(sketch.level), sha256, arrays)))


def read_sketch(path: Path, sha256: str) -> Sketch | None:
    """The sketch of the split with this hash; None if there is none, or what is there is not one of this text."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            found = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
    except (OSError, SafetensorError):
        return None
    if found != _metadata(found.get("level", ""), sha256, arrays):
        return None
    return Sketch(int(found["level"]), **arrays)


def stored_sketch(path: Path, entry: SplitEntry, documents: Iterable[bytes]) -> Sketch:
    """The sketch of a split; made from its `documents` and kept if it is missing."""
    sketch = read_sketch(path, entry.sha256)
    if sketch is None:
        sketch = sketch_documents(documents)
        # In a folder that cannot be written nothing is kept, and the next caller has to wait, too.
        with contextlib.suppress(OSError):
            write_sketch(path, sketch, entry.sha256)
    return sketch


def _metadata(level: str, sha256: str, arrays: dict[str, npt.NDArray[np.generic]]) -> dict[str, str]:
    """The metadata of a sketch; the hash covers all of it."""
    digest = hashlib.sha256(f"{level} {sha256}\n".encode())
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return {"format": FORMAT, "level": level, "split_sha256": sha256, "sha256": digest.hexdigest()}
