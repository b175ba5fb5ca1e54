"""Datasets of bytes to datasets of tokens: `encode_dataset` does the work of `bytetwin tokenizer encode`.

Every document is encoded on its own, with the document start in front, and accounted for three times: by
the byte table (docs/techniques.md 1.2), by decoding its tokens, and by the tokenizer's normalised form of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data import builtin
from data.folders import dataset_folder
from data.manifest import Manifest, read_manifest
from data.opening import existing_manifest, open_existing
from data.stream import SymbolStream
from data.token_bytes import Tokens
from data.tokenizer import Tokenizer
from data.writer import DatasetWriter, refuse_existing
from shared.errors import DataError
from shared.spec import VocabularySpec
from shared.tolerances import DENOMINATOR_REL

_BATCH_BYTES = 1 << 20


@dataclass
class EncodeResult:
    """The new manifest, its tokens, and how its text differs from the source's.

    `changed_documents` decode to other bytes than they had: the tokenizer normalises. `empty_documents`
    have no text left after that and are not in the dataset.
    """

    manifest: Manifest
    num_tokens: int = 0
    text_bytes: int = 0
    source_bytes: int = 0
    changed_documents: int = 0
    empty_documents: int = 0


def encode_dataset(
    name: str,
    source: str,
    tokenizer: Tokenizer,
    *,
    replace: bool = False,
    keep_existing: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> EncodeResult:
    """Encode every split of the byte dataset `source` as dataset `name`.

    `progress(done_bytes, total_bytes)` counts bytes of the source. Raises DataError; nothing is then left behind.
    """
    if name == builtin.NAME:
        raise DataError(f"dataset name {name!r} is taken by the built-in corpus; choose another")
    folder = dataset_folder(name)
    if not (replace or keep_existing):
        refuse_existing(folder)
    manifest = existing_manifest(source)
    if manifest.tokenizer is not None:
        raise DataError(f"dataset {source!r} holds tokens already; encode one of bytes")
    total_bytes = sum(entry.total_bytes for entry in manifest.splits.values())
    result = EncodeResult(manifest)
    with DatasetWriter(
        folder,
        replace=replace,
        keep_existing=keep_existing,
        tokenizer=tokenizer.content,
        vocab_size=tokenizer.vocab_size,
    ) as writer:
        for split in manifest.splits:
            for documents in _batches(open_existing(source, split, VocabularySpec())):
                for tokens, text in _encoded(tokenizer, documents, result):
                    writer.add_tokens(split, tokens, text)
                progress(result.source_bytes, total_bytes)
        writer.finish(f"{source} ({manifest.sha256[:12]}) in {tokenizer.vocab_size} tokens")
    result.manifest = read_manifest(folder)
    return result


def _batches(stream: SymbolStream) -> Iterator[list[str]]:
    """The documents of a byte split as text, some at a time. Raises DataError for one that is not UTF-8."""
    batch: list[str] = []
    size = 0
    for index, document in enumerate(stream.documents()):
        try:
            batch.append(document.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{stream.name}: document {index} is not UTF-8 at its byte {error.start}") from None
        size += len(document)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(tokenizer: Tokenizer, documents: list[str], result: EncodeResult) -> Iterator[tuple[Tokens, bytes]]:
    """The tokens of each document that keeps any text, and that text, whose bytes are added to `result`."""
    table = tokenizer.table
    encoded = tokenizer.encode(documents)
    decoded = table.decode(encoded)
    normalised_bytes = 0
    decoded_bytes = 0
    for document, tokens, text in zip(documents, encoded, decoded, strict=True):
        source = document.encode()
        counted = int(table.counts(tokens, table.document_start).sum())
        if counted != len(text):
            raise DataError(
                f"a document that begins {document[:40]!r} decodes to {len(text)} bytes, its tokens count {counted}: "
                "this tokenizer's text cannot be accounted for"
            )
        normalised_bytes += len(tokenizer.normalised(document).encode())
        decoded_bytes += counted
        result.source_bytes += len(source)
        result.text_bytes += counted
        result.changed_documents += text != source
        if not text:
            result.empty_documents += 1
            continue
        result.num_tokens += len(tokens)
        yield tokens, text
    if abs(decoded_bytes - normalised_bytes) > DENOMINATOR_REL * normalised_bytes:
        raise DataError(
            f"documents of {normalised_bytes} bytes, as the tokenizer normalises them, decode to {decoded_bytes}: "
            "this tokenizer's text cannot be accounted for"
        )
