"""The data set of a small hub: token shards of sentences, as the public repository has them, and their tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.tokenizer import Tokenizer
from shared.cli.main import main
from tests.token_text import trained_model, write_shard

REPO = "willdepueoai/parameter-golf"
FOLDER = "datasets/datasets/fineweb10B_sp1024"
TOKENIZER = "datasets/tokenizers/fineweb_1024_bpe.model"

Refusal = Callable[..., str]
"""Gives the one line with which a download is refused."""


def shard_name(side: str, number: int) -> str:
    return f"{FOLDER}/fineweb_{side}_{number:06d}.bin"


FIRST = shard_name("train", 0)
SECOND = shard_name("train", 1)


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    words = ["the", "of", "and", "to", "sea", "stone", "1984", "caf\u00e9", "\u4f60\u597d", "\U0001f600", "fox-trot"]
    return [" ".join(draw.choices(words, k=draw.randrange(3, 40))) + ".\n" for _ in range(count)]


def train_model(size: int = 340, **options: Any) -> bytes:
    """A tiny SentencePiece model with the options of the public one, or others."""
    return trained_model(sentences(200, seed=7), size=size, **options)


def encode_stream(model: bytes, texts: list[str]) -> np.ndarray:
    return np.concatenate(Tokenizer(model, Path("some.model")).encode(texts))


def normalised(model: bytes, texts: list[str]) -> list[bytes]:
    tokenizer = Tokenizer(model, Path("some.model"))
    return [tokenizer.normalised(text).encode() for text in texts]


def shard_bytes(folder: Path, tokens: np.ndarray) -> bytes:
    path = folder / "a.bin"
    path.unlink(missing_ok=True)
    write_shard(path, tokens)
    return path.read_bytes()


TRAIN_TEXTS = sentences(300, seed=1)
HELDOUT_TEXTS = sentences(40, seed=2)


def download(*words: object) -> int:
    return main(["data", "download", *(str(word) for word in words)])
