"""Shared by the sections of a spec: strictness, the ranges of their fields, and the message of a broken rule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]

AboveZero = Annotated[float, Field(gt=0.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]

DType = Literal["float32", "bfloat16"]
Float32Products = Literal["exact", "fast"]


class Section(BaseModel):
    """Base of every section: immutable, strict about types, refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def require(holds: bool, field: str, value: object, allowed: str) -> None:
    """Raise ValueError naming the field, its value and what is allowed."""
    if not holds:
        raise ValueError(f"{field} = {value!r}: must be {allowed}")


def require_all(section: Section, name: str, *rules: tuple[bool, str, str]) -> None:
    """Raise ValueError for the first rule of a section that does not hold: (holds, its field, what is allowed)."""
    for holds, field, allowed in rules:
        value = getattr(section, field)
        require(holds, f"{name}.{field}", list(value) if isinstance(value, tuple) else value, allowed)
