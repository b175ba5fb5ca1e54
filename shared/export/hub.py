"""Sends a folder to the hub as a model repository."""

from __future__ import annotations

from pathlib import Path

from data.hub_api import LIBRARY, endpoint, hub_errors, prepare_hub
from shared.errors import UserError


def push_folder(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload a folder as one commit to the model repository NAME or OWNER/NAME, which is made if there is none,
    private unless `public`. Returns its address. Raises UserError for a name that is none, DataError if the hub refuses
    or cannot be reached.
    """
    prepare_hub()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=endpoint(), library_name=LIBRARY)
    try:
        with hub_errors(f"model {name}"):
            repository = api.create_repo(name, private=not public, exist_ok=True)
            api.upload_folder(folder_path=folder, repo_id=repository.repo_id, commit_message="bytetwin export")
    except HFValidationError as error:
        raise UserError(f"--push {name}: {error}") from None
    return f"{endpoint()}/{repository.repo_id}"
