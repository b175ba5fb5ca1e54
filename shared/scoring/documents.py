"""The parts of a score by document: two models are best compared on the same documents.

documents.safetensors holds `nats` [D] float64 and `bytes` [D] int64 in the order of the text. score.json says what
was scored and how; the sums of both files are the same, which is checked on reading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save as tensors_to_bytes

from shared.errors import RunError
from shared.files import check_regular, write_atomically
from shared.parsing import parse_tensors

# Both files sum the same float64 numbers in another order.
SUM_REL = 1e-9


@dataclass(frozen=True)
class DocumentScores:
    """`nats` [D] float64 and `bytes` [D] int64 of every document, in the order of the text."""

    nats: np.ndarray
    bytes: np.ndarray


NO_DOCUMENTS = DocumentScores(np.zeros(0), np.zeros(0, np.int64))


def write_document_scores(path: Path, scores: DocumentScores) -> None:
    """Write documents.safetensors, whole or not at all."""
    # safetensors writes memory as it lies there, so a column of a matrix must be copied first.
    tensors = {"nats": np.ascontiguousarray(scores.nats), "bytes": np.ascontiguousarray(scores.bytes)}
    write_atomically(path, tensors_to_bytes(tensors))


def read_document_scores(path: Path, *, documents: int, num_bytes: int, nats: float) -> DocumentScores | None:
    """The documents behind a score of `documents` documents, `num_bytes` bytes and `nats`; None if none were kept.

    Raises RunError if the file is damaged or does not add up to the score.
    """
    try:
        check_regular(path)
        tensors = parse_tensors(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise RunError(f"{path}: not a safetensors file") from None
    kinds = {name: (value.ndim, value.dtype) for name, value in tensors.items()}
    if kinds != {"nats": (1, np.float64), "bytes": (1, np.int64)}:
        raise RunError(f"{path}: must hold the vectors nats, float64, and bytes, int64")
    found, sizes = tensors["nats"], tensors["bytes"]
    same = len(found) == len(sizes) == documents and int(sizes.sum()) == num_bytes
    if not same or not math.isclose(float(found.sum()), nats, rel_tol=SUM_REL):
        raise RunError(f"{path}: does not add up to the score in score.json; remove it to compare without documents")
    return DocumentScores(found, sizes)
