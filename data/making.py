"""Makes the built-in datasets when they are first opened."""

from __future__ import annotations

import re
from collections.abc import Callable

from data import builtin
from data.compressed import measure_heldout
from data.encoding import encode_dataset
from data.folders import dataset_folder
from data.manifest import Manifest, read_manifest
from data.tokenizer import read_tokenizer, tokenizer_path
from data.tokenizer_training import Normalisation, train_tokenizer
from data.writer import DatasetWriter

BUILTIN = builtin.NAME

# The built-in corpus in tokens of a tokenizer of this size, trained on it, with or without CaseOps.
_BUILTIN_TOKENS = re.compile(rf"{BUILTIN}-sp([1-9][0-9]{{2,4}})(-caseops)?")


def make_missing(name: str) -> None:
    """Make a built-in dataset that is not there yet; nothing for any other name. Raises DataError."""
    if dataset_folder(name).is_dir():
        return
    if match := _BUILTIN_TOKENS.fullmatch(name):
        make_missing(BUILTIN)
        _build_builtin_tokens(name, int(match[1]), with_caseops=bool(match[2]))
    elif name == BUILTIN:
        build_builtin()


def build_builtin(
    *, replace: bool = False, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> Manifest:
    """Make the built-in corpus; a process that loses a race for it uses the winner's. Raises DataError."""
    corpus = builtin.build_corpus(progress)
    folder = dataset_folder(BUILTIN)
    with DatasetWriter(folder, replace=replace, keep_existing=True) as writer:
        for text in corpus.train:
            writer.add("train", [text.encode()])
        for text in corpus.heldout:
            writer.add("heldout", [text.encode()])
        writer.finish(corpus.description)
    measure_heldout(BUILTIN)
    return read_manifest(folder)


def _build_builtin_tokens(name: str, vocab_size: int, with_caseops: bool) -> None:
    """Train a tokenizer called `name` on the built-in corpus, unless there is one, and encode the corpus with it as
    dataset `name`; a process that loses a race uses the winner's. Raises DataError."""
    path = tokenizer_path(name)
    if not path.exists():
        normalisation: Normalisation = "identity" if with_caseops else "nmt_nfkc"
        train_tokenizer(name, BUILTIN, vocab_size, normalisation=normalisation, with_caseops=with_caseops, replace=True)
    tokenizer = read_tokenizer(path)
    encode_dataset(name, BUILTIN, tokenizer, keep_existing=True)
    measure_heldout(name)
