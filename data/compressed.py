"""The sizes that general compressors reach on the text of a dataset, stored with its manifest.

These figures are shown with every score of the text. They depend on nothing else and take minutes of a processor for
a large text, so they are measured when a dataset is made. `compressors_SHA256.json` (its first 16 digits) holds those
of one text, a whole split or a sample of its documents. It is written once and whole, so that several processes may
do so at the same time; a damaged one counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.compressors import NAMES, CompressorResult, Progress, compressor_results
from data.folders import dataset_folder, dataset_names, datasets_root
from data.manifest import Positive, Sha256
from data.opening import existing_manifest, open_existing, vocabulary_of
from shared.files import write_atomically

Results = dict[str, CompressorResult]


class _Kept(BaseModel):
    """The content of a file: sizes of the compressed text, and in `bytes` the size before."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    text_sha256: Sha256
    bytes: Positive
    compressed_bytes: Annotated[dict[str, Positive], Field(min_length=1)]


def measure_heldout(name: str, progress: Progress = lambda _done, _total: None) -> Results:
    """The figures of the held-out text of a dataset, measured and kept where they are missing; empty if it has none.

    `progress(done_bytes, total_bytes)` follows the work. Raises DataError.
    """
    manifest = existing_manifest(name)
    if "heldout" not in manifest.splits:
        return {}
    return measure(name, open_existing(name, "heldout", vocabulary_of(manifest)).text_bytes(), progress)


def measure(name: str, text: bytes, progress: Progress = lambda _done, _total: None) -> Results:
    """The figures of a text, compressed now unless they are known; kept with the dataset `name`, if there is one."""
    text_sha256 = hashlib.sha256(text).hexdigest()
    results = find_results(text_sha256) or compressor_results(text, progress)
    if name in dataset_names():
        path = dataset_folder(name) / _file(text_sha256)
        if not _read(path, text_sha256):
            sizes = {compressor: result.compressed_bytes for compressor, result in results.items()}
            kept = _Kept(text_sha256=text_sha256, bytes=len(text), compressed_bytes=sizes)
            # If nothing can be written, the next score takes the same time again, and that is all.
            with contextlib.suppress(OSError):
                write_atomically(path, kept.model_dump_json(indent=2).encode() + b"\n")
    return results


def find_results(text_sha256: str) -> Results:
    """The figures of a text from any dataset: the same text may lie in several, as bytes and as tokens."""
    for path in sorted(datasets_root().glob(f"*/{_file(text_sha256)}")):
        if results := _read(path, text_sha256):
            return results
    return {}


def _read(path: Path, text_sha256: str) -> Results:
    """The figures in a file; empty if it is missing, damaged or of another text."""
    if not path.is_file():
        return {}
    try:
        kept = _Kept.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return {}
    if kept.text_sha256 != text_sha256 or kept.compressed_bytes.keys() != set(NAMES):
        return {}
    return {name: CompressorResult.of(kept.compressed_bytes[name], kept.bytes) for name in NAMES}


def _file(text_sha256: str) -> str:
    return f"compressors_{text_sha256[:16]}.json"
