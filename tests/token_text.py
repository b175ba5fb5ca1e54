"""Small tokenizers and text for tests of tokens, made once in a process."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from data import caseops
from data.shards import BYTES_VERSION, TOKENS_VERSION, ShardWriter
from data.stream import JoinedShards
from data.token_bytes import TokenBytes
from data.token_stream import TokenStream
from data.tokenizer import Tokenizer
from data.tokenizer_training import SETTINGS, Normalisation
from shared.spec import Spec, VocabularySpec, spec_from_dict

SIZE = 330
WORDS = ["the cat sat on the mat,", "then it ran off in 1984", "and nobody saw it again.", "caf\u00e9 \U0001f600"]


def write_shard(path: Path, symbols: np.ndarray) -> None:
    """Write a whole shard of uint8 or uint16 symbols `[count]`."""
    writer = ShardWriter(path, BYTES_VERSION if symbols.itemsize == 1 else TOKENS_VERSION)
    writer.write(symbols.tobytes())
    writer.close()


@functools.cache
def small_tokenizer(normalisation: Normalisation = "nmt_nfkc", size: int = SIZE) -> Tokenizer:
    """A tokenizer with the settings of the real ones, trained on a few words."""
    return Tokenizer(trained_model(" ".join(WORDS[:3]), normalisation, size), Path("small.model"))


@functools.cache
def caseops_tokenizer() -> Tokenizer:
    """The same with CaseOps."""
    text = caseops.encode(" ".join(WORDS[:3]).title())
    content = trained_model(text, "identity", SIZE, user_defined_symbols=list(caseops.SENTINELS))
    return Tokenizer(content, Path("caseops.model"))


def trained_model(
    text: str | list[str], normalisation: Normalisation = "nmt_nfkc", size: int = SIZE, **others: Any
) -> bytes:
    """The content of a model file; `others` are options that differ from those of the real ones."""
    model = io.BytesIO()
    settings = {"remove_extra_whitespaces": normalisation != "identity", **SETTINGS, **others}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text if isinstance(text, list) else [text] * 20),
        model_writer=model,
        vocab_size=size,
        normalization_rule_name=normalisation,
        **settings,
    )
    return model.getvalue()


def documents(count: int, seed: int = 0) -> list[str]:
    """Texts of a few phrases each, some with characters that no tokenizer here has a piece for."""
    rng = np.random.default_rng(seed)
    return [" ".join(WORDS[word] for word in rng.integers(0, len(WORDS), rng.integers(1, 6))) for _ in range(count)]


def token_stream(texts: list[str], tokenizer: Tokenizer, table: TokenBytes | None = None) -> TokenStream:
    """A stream of encoded texts in memory; `table` replaces the tokenizer's byte table."""
    encoded = tokenizer.encode(texts)
    tokens = np.concatenate(encoded)
    starts = np.cumsum([0, *(len(part) for part in encoded[:-1])], dtype=np.int64)
    return TokenStream(
        JoinedShards([tokens[:7], tokens[7:]]),
        starts,
        table or tokenizer.table,
        vocabulary(tokenizer),
        name="toy/heldout",
        sha256="ab" * 32,
        num_bytes=sum(len(tokenizer.normalised(text).encode()) for text in texts),
    )


def vocabulary(tokenizer: Tokenizer) -> VocabularySpec:
    """The vocabulary of a model of this tokenizer."""
    return VocabularySpec(kind="tokens", vocab_size=tokenizer.vocab_size, tokenizer=tokenizer.sha256)


def token_spec(vocab: dict[str, Any], **model: Any) -> Spec:
    """A small spec of tokens."""
    shape = {"num_layers": 1, "model_dim": 32, "num_heads": 2, "num_kv_heads": 1, "seq_len": 32}
    return spec_from_dict(
        {
            "name": "tokens",
            "vocabulary": {"kind": "tokens", **vocab},
            "model": {**shape, **model},
            "training": {"steps": 8, "batch_symbols": 256, "compile": False},
        }
    )
