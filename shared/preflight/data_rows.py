"""Rows about the datasets: are they whole, and long enough?"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data.datasets import load_manifest, open_split
from data.folders import dataset_folder
from data.manifest import FileEntry
from shared.errors import DataError
from shared.preflight.question import Context
from shared.preflight.row import Row, judged, no_go, unknown
from shared.preflight.speed_rows import plan_run
from shared.training.run_data import overlap_with_training
from shared.training.sources import open_sources, open_training_text, training_loader
from shared.units import format_bytes

# Hashing stops after this long; what is left is checked by size. Gigabytes take longer than preflight may.
HASH_LIMIT_S = 20.0
HASH_THREADS = 8
CHUNK_BYTES = 1 << 22


def shards_row(context: Context) -> Row:
    """Every file of the splits that the run reads: there, of the size and (time allowing) the hash it should have."""
    data = context.spec.data
    try:
        files = [*_files(data.train, "train"), *_files(data.heldout, "heldout")]
        checked = _check_files(files, 0.0 if context.question.quick else HASH_LIMIT_S)
        problems = [problem for problem, _ in checked if problem]
        if not problems:
            # Headers, document starts and lengths, as the run will read them.
            open_sources(context.spec)
    except DataError as error:
        return no_go("shards", "not usable", str(error), problems=[str(error)])
    hashed = sum(is_hashed for _, is_hashed in checked)
    size = format_bytes(sum(entry.bytes for _, entry in files))
    by_size = len(files) - hashed
    how = f"{hashed} of {len(files)} files ({size}) hashed with SHA-256"
    if by_size:
        reason = "--quick" if context.question.quick else f"hashing stops after {HASH_LIMIT_S:g} s"
        how += f", {by_size} by size alone ({reason}; `bytetwin data verify` hashes all)"
    values: dict[str, Any] = {"files": len(files), "hashed": hashed, "problems": problems}
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        return no_go("shards", f"{len(problems)} of {len(files)} files wrong", f"{problems[0]}{more}; {how}", **values)
    return judged(True, "shards", f"{len(files)} files whole", how, **values)


def enough_data_row(context: Context) -> Row:
    """Symbols of a pass over the text that the run trains on, in whole windows, against those that it will see."""
    try:
        stream = open_training_text(context.spec)
        loader = training_loader(context.spec, stream)
    except DataError as error:
        return unknown("enough_data", f"the training text cannot be opened, see row shards: {error}")
    plan, available = plan_run(context), loader.windows_per_epoch * context.spec.model.seq_len
    values = {"available_symbols": available, "seen_symbols": plan.symbols, "most_symbols": plan.most_symbols}
    text = f"{stream.name} holds {stream.num_bytes:,} bytes"
    if plan.symbols is None:
        how = f"{text}; the run sees at most training.steps x training.batch_symbols = {plan.most_symbols:,}"
        if available >= plan.most_symbols:
            return judged(True, "enough_data", f"{available:,} symbols", how, **values)
        return unknown("enough_data", f"needs a GPU to know the step time; {how}", f"{available:,} symbols", **values)
    epochs = plan.symbols / available
    figure = f"{available:,} symbols in whole windows, {plan.symbols:,} seen: {epochs:.3g} passes"
    how = f"{text}; steps x batch" + (" in the time limit" if context.spec.schedule.driver == "time" else "")
    return judged(epochs <= 1.0, "enough_data", figure, how, **values, epochs=epochs)


def overlap_row(context: Context) -> Row:
    """Whether the held-out text occurs in the training text, by the sketches that the datasets keep of both."""
    spec = context.spec
    try:
        heldout = open_split(spec.data.heldout, "heldout", spec.vocabulary)
    except DataError as error:
        return unknown("overlap", f"the held-out text cannot be opened, see row shards: {error}")
    check = overlap_with_training(spec, heldout)
    if math.isnan(check.measured):
        return unknown("overlap", check.detail)
    figure = f"{check.measured:.2%}, at most {check.limit:.1%}"
    return judged(check.passed, "overlap", figure, check.detail, measured=check.measured, limit=check.limit)


def _files(name: str, split: Literal["train", "heldout"]) -> list[tuple[Path, FileEntry]]:
    """(path, size and hash) of the shards and document starts of a split, from its manifest. Raises DataError."""
    entry = load_manifest(name).splits.get(split)
    if entry is None:
        raise DataError(f"dataset {name!r} has no {split} split")
    folder = dataset_folder(name)
    return [(folder / file.file, file) for file in [*entry.shards, entry.document_starts]]


def _check_files(files: Sequence[tuple[Path, FileEntry]], hash_limit_s: float) -> list[tuple[str, bool]]:
    """`_check_file` of all, several at a time; none is hashed beyond `hash_limit_s` from now."""
    check = partial(_check_file, until=time.monotonic() + hash_limit_s)
    with ThreadPoolExecutor(min(HASH_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(check, files))


def _check_file(file: tuple[Path, FileEntry], until: float) -> tuple[str, bool]:
    """(what is wrong with a file, '' if nothing; whether it was hashed and not only its size compared)."""
    path, entry = file
    try:
        num_bytes = path.stat().st_size
        if num_bytes != entry.bytes:
            return f"{path}: {num_bytes} bytes; the manifest says {entry.bytes}", False
        digest = _digest(path, until)
    except FileNotFoundError:
        return f"{path}: missing", False
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror or error})", False
    if digest is None or digest == entry.sha256:
        return "", digest is not None
    return f"{path}: SHA-256 {digest}; the manifest says {entry.sha256}", True


def _digest(path: Path, until: float) -> str | None:
    """SHA-256 in hexadecimal; None if time runs out first."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while time.monotonic() < until:
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)
    return None
