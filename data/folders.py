"""The folders of datasets, and their names.

A dataset is a folder `datasets_root()/NAME` with `manifest.json`, shards and a file of document starts
(little-endian int64) per split.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from data.manifest import FILE_NAME, MAX_NAME
from shared.errors import DataError
from shared.user_folders import user_data_folder

ROOT_VARIABLE = "BYTETWIN_DATASETS"
# The folder of trained tokenizers next to the datasets; no dataset has this name.
TOKENIZERS = "tokenizers"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def datasets_root() -> Path:
    """The folder of all datasets: $BYTETWIN_DATASETS; else `data/datasets` of a checkout; else, where bytetwin is
    installed, `datasets` in the user's data folder."""
    configured = os.environ.get(ROOT_VARIABLE)
    return Path(configured) if configured else (user_data_folder() or Path(__file__).resolve().parent) / "datasets"


def dataset_folder(name: str) -> Path:
    """The folder of a dataset, existing or not. Raises DataError for a name that is not a plain file name."""
    if not _NAME.fullmatch(name):
        raise DataError(f"dataset name {name[:100]!r}: use letters, digits, '.', '_', '-', first a letter or digit")
    if len(name) > MAX_NAME:
        raise DataError(f"dataset name {name[:40]}...: {len(name)} characters; allowed are {MAX_NAME}")
    if name == TOKENIZERS:
        raise DataError(f"dataset name {name!r}: taken by the folder of tokenizers; choose another")
    return datasets_root() / name


def dataset_names() -> list[str]:
    """Names of the datasets on disk, sorted."""
    root = datasets_root()
    if not root.is_dir():
        return []
    return sorted(path.parent.name for path in root.glob(f"*/{FILE_NAME}") if _NAME.fullmatch(path.parent.name))
