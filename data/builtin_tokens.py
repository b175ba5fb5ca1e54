"""The built-in corpus in tokens: `builtin-sp512` and its like, made when first opened."""

from __future__ import annotations

from data import builtin
from data.compressed import measure_heldout
from data.encoding import encode_dataset
from data.tokenizer import read_tokenizer, tokenizer_path
from data.tokenizer_training import train_tokenizer


def build_builtin_tokens(name: str, vocab_size: int) -> None:
    """Train a tokenizer called `name` on the corpus, unless there is one, and encode the corpus with it as dataset
    `name`; a process that loses a race uses the winner's. Raises DataError."""
    path = tokenizer_path(name)
    tokenizer = read_tokenizer(path) if path.exists() else train_tokenizer(name, builtin.NAME, vocab_size, replace=True)
    encode_dataset(name, builtin.NAME, tokenizer, keep_existing=True)
    measure_heldout(name)
