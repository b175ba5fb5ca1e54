"""The data section: the texts."""

from __future__ import annotations

from pydantic import Field

from shared.spec.base import BelowOne, Section


class DataSpec(Section):
    """Datasets by name (`bytetwin data list`). `builtin` needs no network: text of the Python library."""

    train: str = Field("builtin", min_length=1, description="dataset whose `train` split is trained on")
    heldout: str = Field("builtin", min_length=1, description="dataset whose `heldout` split is only scored")
    selection_frac: BelowOne = Field(
        0.0,
        description="fraction at the end of the training text, cut at a document start, that is held back from "
        "training; choices between runs, such as the weights of a soup, are made on it",
    )
