"""The tables of container version 1, in which the spec alone says how a tensor is stored, and brotli is the codec."""

from __future__ import annotations

from typing import Any

from shared.artifact.layout import TensorEntry
from shared.quantisers import Float32

SECTION_KEYS = ("name", "raw_bytes", "sha256", "stored_bytes")
"""The keys of a row of the table of sections, which names no codec."""

UNNAMED_METHOD = "row_max"
"""The method of quantised tensors in a table that lacks it, from before there was a choice."""


def table_row(entry: TensorEntry) -> dict[str, Any]:
    """The row of a tensor: where it is quantised also its method, and the offset of its scales."""
    row: dict[str, Any] = {
        "name": entry.name,
        "shape": list(entry.shape),
        "class": entry.quantisation,
        "bits": entry.storage.bits,
    }
    if not isinstance(entry.storage, Float32):
        row["method"] = entry.storage.method
    for index, (part, _, offset_bytes) in enumerate(entry.positions):
        row[f"{part.name.removesuffix('s')}_offset" if index else "offset"] = offset_bytes
    return row


def with_method(row: Any, expected: dict[str, Any]) -> Any:
    """A row as it was read, with the method that its writer did not name yet."""
    return {"method": UNNAMED_METHOD, **row} if isinstance(row, dict) and "method" in expected else row
