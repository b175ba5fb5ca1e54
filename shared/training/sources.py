"""The texts of a run: the training text with its loader, the held-out text and a sample of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.datasets import open_split
from data.loader import Loader
from data.selection import training_part
from data.stream import SymbolStream, TrainingText
from shared.model import reads_text
from shared.model.bigrams import BIGRAM_SYMBOLS
from shared.spec import Spec

# One fixed sample for every run, so that validation scores of different seeds are of the same documents.
VALIDATION_SEED = 0


@dataclass(frozen=True)
class Sources:
    """The streams of a run and the loader over the first."""

    train: TrainingText
    heldout: SymbolStream
    validation: SymbolStream
    loader: Loader

    @property
    def bytes_per_symbol(self) -> float:
        """Bytes of text per symbol of the training stream."""
        return self.train.num_bytes / self.train.num_symbols

    def describe(self) -> dict[str, dict[str, Any]]:
        """Names, sizes and hashes, for environment.json and the console."""
        streams: dict[str, TrainingText] = {"train": self.train, "heldout": self.heldout, "validation": self.validation}
        return {role: _describe(stream) for role, stream in streams.items()}


def open_training_text(spec: Spec) -> TrainingText:
    """The text that a spec is trained on. Raises DataError if it is missing or damaged."""
    stream = open_split(spec.data.train, "train", spec.vocabulary)
    return training_part(stream, spec.data.selection_frac)


def starting_text(spec: Spec, train: TrainingText | None = None) -> np.ndarray | None:
    """The part of the training text that initial weights read, int32 [n]; None where they read none.

    `train`: that text, if it is open already. Raises DataError otherwise if it is missing or damaged.
    """
    if not reads_text(spec):
        return None
    text = train or open_training_text(spec)
    return text.read(0, min(BIGRAM_SYMBOLS, text.num_symbols))


def open_sources(spec: Spec) -> Sources:
    """The data a spec names. Raises DataError if it is missing, damaged or too small."""
    train = open_training_text(spec)
    heldout = open_split(spec.data.heldout, "heldout", spec.vocabulary)
    loader = training_loader(spec, train)
    sample = heldout.sample_documents(spec.evaluation.val_symbols, VALIDATION_SEED)
    return Sources(train=train, heldout=heldout, validation=sample, loader=loader)


def training_loader(spec: Spec, train: TrainingText) -> Loader:
    """The batches of a run over its training text. Raises DataError if that is shorter than a window."""
    batch_rows = spec.training.batch_symbols // spec.model.seq_len
    return Loader(train, spec.model.seq_len, batch_rows, spec.training.seed)


def _describe(stream: TrainingText) -> dict[str, Any]:
    return {
        "name": stream.name,
        "symbols": stream.num_symbols,
        "bytes": stream.num_bytes,
        "documents": stream.num_documents,
        "sha256": stream.sha256,
    }
