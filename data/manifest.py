"""The manifest of a dataset, `manifest.json`, read strictly.

Hashes are over content: the same documents give the same hashes under any dataset name.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import DataError
from shared.spec.vocabulary import MAX_TOKENS, NUM_SPECIALS

FORMAT: Final = 1
FILE_NAME = "manifest.json"
SPLITS = ("train", "heldout")
BYTES_VOCABULARY = "bytes"

# Larger than any file; Python neither prints nor compares an integer of thousands of digits in good time.
Positive = Annotated[int, Field(gt=0, lt=1 << 62)]
MAX_NAME = 200
MAX_MANIFEST_BYTES = 1 << 24
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# A plain name: a manifest must not reach outside its folder.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME)]
SplitName = Literal["train", "heldout"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Entry):
    """One file of the dataset: its size and the SHA-256 of all its bytes."""

    file: FileName
    bytes: Positive
    sha256: Sha256


class TokenizerEntry(FileEntry):
    """The tokenizer of a dataset of tokens: its model file, and how many tokens it knows."""

    vocab_size: Annotated[int, Field(gt=NUM_SPECIALS, le=MAX_TOKENS)]


class SplitEntry(_Entry):
    """One split: shards in order, documents, bytes of the text, and the file of document starts.

    The text of a dataset of tokens is what its documents decode to.
    """

    shards: Annotated[list[FileEntry], Field(min_length=1)]
    num_documents: Positive
    total_bytes: Positive
    document_starts: FileEntry

    @property
    def sha256(self) -> str:
        """Hash of everything in the split."""
        return _hash(self.model_dump(mode="json"))


class Origin(_Entry):
    """The source of a dataset of the hub: `revision` is a commit, `train_shards` of the available ones were taken."""

    repo_id: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    folder: str
    train_shards: Positive
    train_shards_available: Positive
    tokenizer_file: str
    tokenizer_sha256: Sha256


class Manifest(_Entry):
    """A whole dataset. `vocabulary` is the tokenizer's hash, or "bytes" for raw bytes; `origin` only from the hub.

    The symbols of shards and document starts are bytes, or with a `tokenizer` tokens.
    """

    format: Literal[1] = FORMAT
    name: FileName
    vocabulary: str = BYTES_VOCABULARY
    source: str
    origin: Origin | None = None
    tokenizer: TokenizerEntry | None = None
    splits: Annotated[dict[SplitName, SplitEntry], Field(min_length=1)]
    sha256: Sha256

    def to_json(self) -> str:
        """The text of the manifest file."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2) + "\n"


def dataset_hash(vocabulary: str, splits: dict[SplitName, SplitEntry]) -> str:
    """SHA-256 over the vocabulary and the hash of every split."""
    return _hash({"vocabulary": vocabulary, "splits": {split: entry.sha256 for split, entry in splits.items()}})


def read_manifest(folder: Path, name: str = "") -> Manifest:
    """The checked manifest of a dataset folder, which must be of dataset `name`, by default the folder's name.

    Raises DataError naming file, field and problem.
    """
    path = folder / FILE_NAME
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: the manifest must be a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            raise DataError(f"{path}: more than {MAX_MANIFEST_BYTES} bytes; no manifest is that long")
        manifest = Manifest.model_validate_json(content)
    except FileNotFoundError:
        raise DataError(f"{path}: the dataset has no manifest") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the manifest ({error.strerror or error})") from None
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        where = ascii(".".join(str(part) for part in problem["loc"]) or "the whole file")[1:-1]
        raise DataError(f"{path}: damaged manifest, {where[:100]}: {problem['msg'][:200]}") from None
    if manifest.name != (name or folder.name):
        raise DataError(f"{path}: the manifest is of dataset {manifest.name!r}, not {name or folder.name!r}")
    expected = dataset_hash(manifest.vocabulary, manifest.splits)
    if manifest.sha256 != expected:
        raise DataError(f"{path}: the dataset hash is {manifest.sha256}, its entries make {expected}: damaged")
    vocabulary = manifest.tokenizer.sha256 if manifest.tokenizer else BYTES_VOCABULARY
    if manifest.vocabulary != vocabulary:
        raise DataError(
            f"{path}: the vocabulary is {manifest.vocabulary[:64]!r}, by its tokenizer {vocabulary}: damaged"
        )
    return manifest


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
