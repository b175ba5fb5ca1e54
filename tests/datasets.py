"""Small datasets in a folder of a test's own (the fixture `datasets`), other files, and a disk that is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.datasets import open_split
from data.folders import datasets_root
from data.writer import DatasetWriter
from shared.spec import VocabularySpec

BYTES = VocabularySpec()


def write_dataset(
    name: str = "toy", *, train: Sequence[bytes] = (), heldout: Sequence[bytes] = (), **options: Any
) -> Path:
    """The folder of a new dataset of bytes, whose documents come to the writer in two pieces."""
    folder = datasets_root() / name
    with DatasetWriter(folder, **options) as writer:
        for document in train:
            writer.add("train", [document[:3], document[3:]])
        for document in heldout:
            writer.add("heldout", [document[:3], document[3:]])
        writer.finish("a test")
    return folder


def documents_of(name: str, split: str) -> list[bytes]:
    """All documents of a dataset of bytes."""
    return list(open_split(name, split, BYTES).documents())


def written(path: Path, content: bytes) -> Path:
    """The path of a file that is there now."""
    path.write_bytes(content)
    return path


def full_disk(*_: object) -> None:
    """What a write does where no space is left."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
