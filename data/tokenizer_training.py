"""Training a SentencePiece tokenizer with the settings of the public ones (docs/techniques.md 2.3)."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from data import caseops
from data.byte_stream import ByteStream
from data.opening import existing_manifest, open_existing
from data.stream import random_permutation
from data.token_bytes import SPACE_MARK, has_space_piece, load_processor
from data.tokenizer import Tokenizer, tokenizer_path, tokenizers_folder
from shared.errors import DataError
from shared.files import write_atomically
from shared.spec import VocabularySpec
from shared.spec.vocabulary import DOCUMENT_START, MAX_TOKENS, NUM_SPECIALS

Normalisation = Literal["nmt_nfkc", "identity"]

DEFAULT_MAX_BYTES = 100_000_000
# The special tokens, one for each byte, and one more.
FEWEST_TOKENS = NUM_SPECIALS + 256 + 1
# Which documents are read does not depend on who trains.
_ORDER_SEED = 0
# SentencePiece silently leaves out longer pieces of text.
_PASSAGE_CHARACTERS = 4096

SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "character_coverage": 0.999,
    "byte_fallback": True,
    "split_digits": True,
    "add_dummy_prefix": False,
    "pad_id": 0,
    "bos_id": DOCUMENT_START,
    "eos_id": 2,
    "unk_id": 3,
    "hard_vocab_limit": False,
    "max_sentence_length": 8 * _PASSAGE_CHARACTERS,
    # Stored in the model, so a number of this machine would change its hash.
    "num_threads": 4,
    "minloglevel": 2,
}


def train_tokenizer(
    name: str,
    dataset: str,
    vocab_size: int,
    *,
    normalisation: Normalisation = "nmt_nfkc",
    with_caseops: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
    replace: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Tokenizer:
    """Train tokenizer `name` on documents of the dataset's training text, drawn until `max_bytes` are read.

    `identity` leaves the text as it is, so that tokens decode to the very bytes; `nmt_nfkc` unifies characters
    and turns every run of white space, line ends too, into one space. CaseOps (docs/techniques.md 2.6) needs
    `identity`. The same text gives the same model.
    A small text may give fewer than `vocab_size` tokens. `progress(done_bytes, total_bytes)` counts what was
    read. Raises DataError; nothing is then written.
    """
    if not FEWEST_TOKENS <= vocab_size <= MAX_TOKENS:
        raise DataError(f"--vocab-size {vocab_size}: must be from {FEWEST_TOKENS} to {MAX_TOKENS:,}")
    if max_bytes < 1:
        raise DataError(f"--max-bytes {max_bytes}: must be at least 1")
    if with_caseops and normalisation != "identity":
        raise DataError(f"--normalisation {normalisation}: must be identity with --caseops, which keeps every byte")
    path = tokenizer_path(name)
    if path.exists() and not replace:
        raise DataError(f"tokenizer {name!r} exists in {path.parent}; --replace overwrites it")
    if existing_manifest(dataset).tokenizer is not None:
        raise DataError(f"dataset {dataset!r} holds tokens already; a tokenizer is trained on bytes")
    try:
        sentencepiece = importlib.import_module("sentencepiece")
    except ImportError:
        raise DataError("training a tokenizer needs sentencepiece; install the extra: bytetwin[data]") from None

    # Only where asked for: every option is stored in the model, and tokenizers without it keep their hashes.
    sentinels = {"user_defined_symbols": list(caseops.SENTINELS)} if with_caseops else {}

    def trained(**more: Any) -> bytes:
        model = io.BytesIO()
        passages = _passages(dataset, max_bytes, progress)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=map(caseops.encode, passages) if with_caseops else passages,
            model_writer=model,
            vocab_size=vocab_size,
            normalization_rule_name=normalisation,
            remove_extra_whitespaces=normalisation != "identity",
            **SETTINGS,
            **sentinels,
            **more,
        )
        return model.getvalue()

    try:
        content = trained()
        # Text without spaces, Chinese or Japanese, gives no piece for one. What is required is stored in the model, so
        # it is not required of other text, whose tokenizers would have other hashes.
        if not has_space_piece(load_processor(path, content)):
            content = trained(required_chars=SPACE_MARK)
    except RuntimeError as error:
        what = f"tokenizer {name!r} of {vocab_size} tokens cannot be trained on {dataset!r}"
        raise DataError(f"{what}: {_in_words(str(error))}") from None
    tokenizer = Tokenizer(content, path)
    tokenizers_folder().mkdir(parents=True, exist_ok=True)
    write_atomically(path, tokenizer.content)
    return tokenizer


def _in_words(message: str) -> str:
    """What an error of SentencePiece means here: it names its own options and checks."""
    line = message.strip().splitlines()[0]
    if needed := re.search(r"required_chars\. \d+ vs (\d+)", line):
        return f"it needs {needed[1]} at least, for special tokens, single bytes and the characters of the text"
    if "all_chars_count" in line:
        return "the text has nothing but white space and control characters"
    return line.rpartition("] ")[2] or line


def _passages(dataset: str, max_bytes: int, progress: Callable[[int, int], None]) -> Iterator[str]:
    """Training text in pieces of at most _PASSAGE_CHARACTERS, cut at spaces where there are any."""
    stream = open_existing(dataset, "train", VocabularySpec())
    assert isinstance(stream, ByteStream)
    total_bytes = min(max_bytes, stream.num_bytes)
    done_bytes = 0
    for index in random_permutation(stream.num_documents, (_ORDER_SEED,)):
        content = stream.document(int(index))
        text = content.decode("utf-8", errors="replace")
        start = 0
        while start < len(text):
            stop = start + _PASSAGE_CHARACTERS
            if stop < len(text):
                space = text.rfind(" ", start + 1, stop)
                stop = space if space > 0 else stop
            yield text[start:stop]
            start = stop
        done_bytes += len(content)
        progress(min(done_bytes, total_bytes), total_bytes)
        if done_bytes >= max_bytes:
            return
