"""Datasets of the hub: `import_from_hub` does the work of `bytetwin data download`.

The hub holds token shards; bytetwin trains on bytes. So the shards and their tokenizer are fetched and checked
(`data.hub_files`), turned back into documents (`data.detokenise`), and written as a byte dataset whose
manifest names repository, commit and tokenizer. The `val` shards become the held-out split, always whole.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data import builtin
from data.detokenise import TokenDocuments
from data.folders import dataset_folder
from data.hub_api import HubFile, Repository, cache_folder, describe_files, look_up, prepare_hub
from data.hub_files import HubFiles
from data.manifest import Manifest, Origin, SplitName, read_manifest
from data.token_bytes import load_token_bytes
from data.tokenizer import tokenizer_path
from data.writer import DatasetWriter, refuse_existing
from shared.errors import DataError
from shared.files import write_atomically

DEFAULT_TOKENIZER = "sp1024"
DEFAULT_SHARDS = 1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HubSource:
    """The location of a dataset: shards `FOLDER/PREFIX_{train,val}_%06d.bin`, and their SentencePiece model.

    `bytes_per_token` bounds the text bytes of a token on average, to foresee the disk space (docs/techniques.md 1.2).
    """

    repo_id: str
    folder: str
    tokenizer_file: str
    bytes_per_token: float
    prefix: str = "fineweb"


def _fineweb(repo_id: str, vocab_size: int, bytes_per_token: float) -> HubSource:
    folder, tokenizer = f"datasets/datasets/fineweb10B_sp{vocab_size}", f"datasets/tokenizers/fineweb_{vocab_size}_bpe"
    return HubSource(repo_id, folder, f"{tokenizer}.model", bytes_per_token)


# The public challenge data by name and tokenizer (docs/techniques.md 2.1), in the layout of its own download script.
SOURCES: dict[str, dict[str, HubSource]] = {
    "fineweb": {
        "sp1024": _fineweb("willdepueoai/parameter-golf", 1024, 2.5),
        "sp4096": _fineweb("kevclark/parameter-golf", 4096, 3.4),
        "sp8192": _fineweb("kevclark/parameter-golf", 8192, 3.85),
    }
}


@dataclass(frozen=True)
class HubResult:
    """The new manifest, and counts of what was downloaded, read and left out.

    `unfinished_documents`: 1 if the last training document continues in a shard that was not requested, else 0.
    """

    manifest: Manifest
    num_files: int
    downloaded_bytes: int
    num_tokens: int
    empty_documents: int
    unfinished_documents: int


@dataclass(frozen=True)
class _Plan:
    """The files to fetch, with the splits they make, in order."""

    splits: dict[SplitName, list[HubFile]]
    tokenizer: HubFile
    num_available: int

    @property
    def files(self) -> list[HubFile]:
        return [self.tokenizer, *self.splits["heldout"], *self.splits["train"]]

    @property
    def shard_bytes(self) -> int:
        return sum(file.size_bytes for shards in self.splits.values() for file in shards)


def import_from_hub(
    source_name: str,
    *,
    tokenizer: str = DEFAULT_TOKENIZER,
    num_shards: int = DEFAULT_SHARDS,
    name: str | None = None,
    replace: bool = False,
    progress: Progress = lambda _task, _done, _total: None,
) -> HubResult:
    """Download the first `num_shards` training shards and the whole validation split as dataset `name`.

    `progress(task, done_bytes, total_bytes)` counts files for "downloading", then shards for "converting".
    Raises DataError; no dataset is then left behind, while downloaded files stay in the hub's cache.
    """
    source = _source(source_name, tokenizer)
    name = source_name if name is None else name
    if num_shards < 1:
        raise DataError(f"--shards {num_shards}: at least 1")
    if name == builtin.NAME:
        raise DataError(f"dataset name {name!r} is taken by the built-in corpus; choose another with --name")
    folder = dataset_folder(name)
    if not replace:
        refuse_existing(folder)
    prepare_hub()
    repository, available = look_up(source.repo_id)
    plan = _plan(source, repository, available, num_shards)
    hub_files = HubFiles(repository)
    downloaded_bytes = hub_files.missing_bytes(plan.files)
    _check_space(folder, downloaded_bytes, int(plan.shard_bytes / 2 * source.bytes_per_token))
    total_bytes = sum(file.size_bytes for file in plan.files)
    paths = hub_files.fetch(plan.files, _counter(progress, "downloading", total_bytes))
    readers = _readers(plan, paths, _counter(progress, "converting", plan.shard_bytes))
    origin = _origin(source, repository, plan, paths)
    with DatasetWriter(folder, replace=replace) as writer:
        for split, reader in readers.items():
            for document in reader:
                writer.add(split, [document])
        shards = f"{origin.train_shards} of {origin.train_shards_available} training shards"
        layout = Path(source.folder).name
        writer.finish(f"{origin.repo_id} at {origin.revision[:12]}: {layout}, {shards}", origin)
    kept = tokenizer_path(hub_tokenizer(source_name, tokenizer))
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, paths[plan.tokenizer.path].read_bytes())
    return HubResult(
        manifest=read_manifest(folder),
        num_files=len(plan.files),
        downloaded_bytes=downloaded_bytes,
        num_tokens=sum(reader.num_tokens for reader in readers.values()),
        empty_documents=sum(reader.empty_documents for reader in readers.values()),
        unfinished_documents=sum(reader.unfinished_tokens > 0 for reader in readers.values()),
    )


def hub_tokenizer(source_name: str, tokenizer: str) -> str:
    """The name under which a download leaves its tokenizer, for `bytetwin tokenizer encode`, and the dataset of
    tokens that `bytetwin prepare` makes with it."""
    return f"{source_name}-{tokenizer}"


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _source(source_name: str, tokenizer: str) -> HubSource:
    if source_name not in SOURCES:
        raise DataError(f"no hub dataset {source_name!r}; there are: {', '.join(SOURCES)}")
    tokenizers = SOURCES[source_name]
    if tokenizer not in tokenizers:
        raise DataError(f"--tokenizer {tokenizer}: {source_name} is there with {', '.join(tokenizers)}")
    return tokenizers[tokenizer]


def _plan(source: HubSource, repository: Repository, paths: frozenset[str], num_shards: int) -> _Plan:
    """The files to fetch, as the hub describes them. Raises DataError if one is missing or too many are requested."""
    train, heldout = (_numbered(paths, source, side) for side in ("train", "val"))
    if num_shards > len(train):
        raise DataError(f"--shards {num_shards}: {source.repo_id} has {len(train)} training shards in {source.folder}")
    train_wanted = train[:num_shards]
    files = describe_files(repository, [source.tokenizer_file, *heldout, *train_wanted])
    splits: dict[SplitName, list[HubFile]] = {
        "heldout": [files[path] for path in heldout],
        "train": [files[path] for path in train_wanted],
    }
    return _Plan(splits, files[source.tokenizer_file], len(train))


def _numbered(paths: frozenset[str], source: HubSource, side: str) -> list[str]:
    """The shards of one side, which must be numbered from 0 without a gap."""
    stem = f"{source.folder}/{source.prefix}_{side}_"
    count = sum(re.fullmatch(re.escape(stem) + r"[0-9]{6}\.bin", path) is not None for path in paths)
    names = [f"{stem}{number:06d}.bin" for number in range(max(1, count))]
    for name in names:
        if name not in paths:
            raise DataError(f"{source.repo_id} has no file {name}")
    return names


def _check_space(folder: Path, download_bytes: int, dataset_bytes: int) -> None:
    """Raise DataError if the files to come, or the dataset, or both on one disk, do not fit."""
    needed: dict[int, tuple[Path, int]] = {}
    for path, num_bytes in ((cache_folder(), download_bytes), (folder.parent, dataset_bytes)):
        device = _existing(path).stat().st_dev
        first, so_far = needed.get(device, (path, 0))
        needed[device] = (first, so_far + num_bytes)
    for path, num_bytes in needed.values():
        free = free_bytes(path)
        if free < num_bytes:
            raise DataError(
                f"not enough disk space in {path}: about {num_bytes / 1e9:.2f} GB needed (downloading "
                f"{download_bytes / 1e9:.2f} GB, dataset {dataset_bytes / 1e9:.2f} GB), {free / 1e9:.2f} GB free; "
                "ask for fewer --shards, or set HF_HOME or BYTETWIN_DATASETS to another disk"
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _readers(plan: _Plan, paths: dict[str, Path], advance: Callable[[int], None]) -> dict[SplitName, TokenDocuments]:
    """The documents of every split. Training text that stops before the last shard stops inside a document."""
    table = load_token_bytes(paths[plan.tokenizer.path])
    documents = partial(TokenDocuments, table=table, advance=advance)
    return {
        split: documents(
            [paths[file.path] for file in shards], ends_here=split == "heldout" or len(shards) == plan.num_available
        )
        for split, shards in plan.splits.items()
    }


def _origin(source: HubSource, repository: Repository, plan: _Plan, paths: dict[str, Path]) -> Origin:
    return Origin(
        repo_id=repository.repo_id,
        revision=repository.revision,
        folder=source.folder,
        train_shards=len(plan.splits["train"]),
        train_shards_available=plan.num_available,
        tokenizer_file=source.tokenizer_file,
        tokenizer_sha256=hashlib.sha256(paths[plan.tokenizer.path].read_bytes()).hexdigest(),
    )


def _counter(progress: Progress, task: str, total_bytes: int) -> Callable[[int], None]:
    """A function that adds up bytes and reports the sum."""
    done_bytes = 0

    def add(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        progress(task, done_bytes, total_bytes)

    return add
