"""The text to be scored, as scoring sees it: symbols, with bytes and documents counted from the text.

Datasets live in `data`, which depends on shared and not the other way; `open_split` finds them by name.
"""

from __future__ import annotations

import importlib
from typing import Protocol

import numpy as np

from data.sketch import Sketch
from shared.spec import Spec, VocabularySpec


class SymbolStream(Protocol):
    """One split of a dataset, seen through a vocabulary. Positions count symbols from 0."""

    @property
    def name(self) -> str:
        """Dataset and split."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of the text with its document boundaries, hexadecimal."""
        ...

    @property
    def num_symbols(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        """Bytes of text as the dataset's manifest records them."""
        ...

    @property
    def num_documents(self) -> int: ...

    def read(self, start: int, count: int) -> np.ndarray:
        """Symbols [start, start + count): [count] int32."""
        ...

    def byte_counts(self, start: int, count: int) -> np.ndarray:
        """Bytes of text that each symbol stands for: [count] integers; a document start stands for none."""
        ...

    def document_ids(self, start: int, count: int) -> np.ndarray:
        """Index of each symbol's document, from 0 in order of appearance: [count] integers."""
        ...

    def text_bytes(self) -> bytes:
        """The text itself, all documents joined."""
        ...

    def sketch(self) -> Sketch:
        """What it takes to find the text in another one."""
        ...

    def sample_documents(self, max_symbols: int, seed: int) -> SymbolStream:
        """A deterministic choice of whole documents with at most about `max_symbols` symbols."""
        ...


def open_split(name: str, split: str, vocabulary: VocabularySpec) -> SymbolStream:
    """A split (`train` or `heldout`) of a dataset by name. Raises DataError if it is missing or damaged."""
    stream: SymbolStream = importlib.import_module("data.datasets").open_split(name, split, vocabulary)
    return stream


def token_bytes(spec: Spec) -> np.ndarray:
    """Bytes of text that each token of the spec's tokenizer stands for inside a text: integers [V].

    Raises DataError if the tokenizer is missing.
    """
    tokenizers = importlib.import_module("data.tokenizer")
    sha256 = bind_tokenizer(spec).vocabulary.tokenizer
    counts: np.ndarray = tokenizers.tokenizer_by_hash(sha256).table.in_text()
    return counts


def bind_tokenizer(spec: Spec) -> Spec:
    """The spec with the tokenizer of its training text written into it, where it reads tokens and names none.

    From then on its spec_id is that of a model of this tokenizer. Raises DataError if the dataset is missing.
    """
    if not spec.vocabulary.reads_tokens or spec.vocabulary.tokenizer:
        return spec
    sha256: str = importlib.import_module("data.datasets").tokenizer_of_dataset(spec.data.train).sha256
    return spec.model_copy(update={"vocabulary": spec.vocabulary.model_copy(update={"tokenizer": sha256})})
