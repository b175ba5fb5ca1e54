"""Shared by the sections of a spec: strictness, the ranges of their fields, and the message of a broken rule."""

from __future__ import annotations

import reprlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# A spec may come from a stranger: whatever is built from a number in it has a limit, far above any sensible value.
# In order: any integer (those of TOML have 64 bits), layers, a side of a matrix, symbols of a window, of a batch.
MAX_INTEGER, MAX_LAYERS, MAX_SIZE, MAX_WINDOW, MAX_BATCH = 2**63 - 1, 4096, 2**20, 2**20, 2**30

Positive = Annotated[int, Field(gt=0, le=MAX_INTEGER)]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
Layers = Annotated[int, Field(gt=0, le=MAX_LAYERS)]
Size = Annotated[int, Field(gt=0, le=MAX_SIZE)]
SizeOrZero = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Window = Annotated[int, Field(gt=0, le=MAX_WINDOW)]
Batch = Annotated[int, Field(gt=0, le=MAX_BATCH)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0)]

AboveZero = Annotated[float, Field(gt=0.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]

# Names with * for any letters and ? for one.
Pattern = Annotated[str, Field(min_length=1, max_length=200)]
Patterns = Annotated[tuple[Pattern, ...], Field(strict=False, max_length=4096)]

DType = Literal["float32", "bfloat16"]
Float32Products = Literal["exact", "fast"]


class Section(BaseModel):
    """Base of every section: immutable, strict about types, refuses unknown keys. Numbers are finite, as what is
    written with a model is JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = 80
_shortener.maxlevel = 3


def shown(value: object) -> str:
    """A value for a message of one line: its Python form, shortened, whatever a hostile file holds."""
    text = _shortener.repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def require(holds: bool, field: str, value: object, allowed: str) -> None:
    """Raise ValueError naming the field, its value and what is allowed."""
    if not holds:
        raise ValueError(f"{field} = {shown(value)}: must be {allowed}")


def require_all(section: Section, name: str, *rules: tuple[bool, str, str]) -> None:
    """Raise ValueError for the first rule of a section that does not hold: (holds, its field, what is allowed)."""
    for holds, field, allowed in rules:
        value = getattr(section, field)
        require(holds, f"{name}.{field}", list(value) if isinstance(value, tuple) else value, allowed)
