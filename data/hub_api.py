"""Requests to the hub, with every refusal reported in one line.

huggingface_hub makes them; it is imported when first needed, so that everything else works without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.errors import DataError

REPO_TYPE = "dataset"
ENDPOINT_VARIABLE = "HF_ENDPOINT"
TIMEOUT_S = 30.0
LIBRARY = "bytetwin"
PATHS_PER_REQUEST = 100
# Answers that another attempt may turn into a good one.
RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Repository:
    """One commit of a data set on the hub; `revision` is the commit's hash."""

    repo_id: str
    revision: str


@dataclass(frozen=True)
class HubFile:
    """A file as the hub describes it: path in the repository, size, and the hash of its bytes.

    `digest` is the SHA-256 of a large file, or the git object id (SHA-1) of a small one that git itself keeps.
    """

    path: str
    size_bytes: int
    digest: str

    def __post_init__(self) -> None:
        """Raise DataError for a malformed hash, because it names a file in the cache."""
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", self.digest):
            raise DataError(f"{self.path}: the hub gives {self.digest!r}, which is not a hash")

    @property
    def algorithm(self) -> str:
        """Name of the hash."""
        return "SHA-256" if len(self.digest) == 64 else "git object id"


def look_up(repo_id: str) -> tuple[Repository, frozenset[str]]:
    """A data set at its present commit, and the paths of all its files. Raises DataError."""
    from huggingface_hub import HfApi

    with hub_errors(f"{REPO_TYPE} {repo_id}"), _foreign_answers():
        info = HfApi(endpoint=endpoint(), library_name=LIBRARY).dataset_info(repo_id, timeout=TIMEOUT_S)
        paths = frozenset(sibling.rfilename for sibling in info.siblings or ())
        if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)):
            raise KeyError("sha")
    return Repository(repo_id, str(info.sha)), paths


def describe_files(repository: Repository, paths: list[str]) -> dict[str, HubFile]:
    """Size and hash of files, by path. Raises DataError if the hub lacks one of them or cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint(), library_name=LIBRARY)
    found: dict[str, HubFile] = {}
    for begin in range(0, len(paths), PATHS_PER_REQUEST):
        wanted = paths[begin : begin + PATHS_PER_REQUEST]
        with hub_errors(f"{REPO_TYPE} {repository.repo_id}"), _foreign_answers():
            entries = api.get_paths_info(repository.repo_id, wanted, revision=repository.revision, repo_type=REPO_TYPE)
            for entry in entries:
                if isinstance(entry, RepoFile):
                    digest = entry.lfs.sha256 if entry.lfs else entry.blob_id
                    found[entry.path] = HubFile(entry.path, int(entry.size), str(digest))
    for path in paths:
        if path not in found:
            raise DataError(f"{repository.repo_id} has no file {path}")
    return found


def endpoint() -> str:
    """The hub's address: $HF_ENDPOINT or the public hub."""
    return (os.environ.get(ENDPOINT_VARIABLE) or "https://huggingface.co").rstrip("/")


def cache_folder() -> Path:
    """The folder of hub files: $HF_HUB_CACHE, $HF_HOME/hub, or the hub's own default."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    default_home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or default_home).expanduser() / "hub"


@contextlib.contextmanager
def hub_errors(what: str, *, retried: bool = False) -> Iterator[None]:
    """Turn errors of the hub into a DataError of one line; with `retried`, let errors through that may be temporary."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise DataError(f"{what}: the hub cannot be asked while HF_HUB_OFFLINE is set") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if retried and status in RETRIED_STATUS:
            raise
        raise DataError(f"{endpoint()} answers {status} for {what}: {_advice(status)}") from None
    except (httpx2.TransportError, httpx2.InvalidURL) as error:
        if retried and isinstance(error, httpx2.TransportError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot reach the hub at {endpoint()} ({reason}); check the network and {ENDPOINT_VARIABLE}"
        ) from None


def prepare_hub() -> None:
    """Import huggingface_hub without its telemetry and warnings. Raises DataError if it is not installed."""
    try:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session, logging
    except ImportError:
        raise DataError("downloading needs huggingface_hub; install it with the extra: bytetwin[data]") from None
    constants.HF_HUB_DISABLE_TELEMETRY = True
    logging.set_verbosity_error()
    get_session().timeout = TIMEOUT_S  # Its own default is to wait forever.


def _advice(status: int) -> str:
    token = "with the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "without HF_TOKEN"
    if status in (401, 403):
        return f"access denied {token}; for gated or private data set HF_TOKEN to a token that has access"
    if status == 404:
        return f"not found {token}; if it is private, set HF_TOKEN to a token that has access"
    if status == 429:
        return "too many requests; try again later, or set HF_TOKEN for a higher limit"
    return "try again later; what was downloaded is kept"


@contextlib.contextmanager
def _foreign_answers() -> Iterator[None]:
    """Turn an answer that is not a hub's (a login page, say) into a DataError."""
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise DataError(f"{endpoint()} does not answer like a hub; check {ENDPOINT_VARIABLE}") from None
