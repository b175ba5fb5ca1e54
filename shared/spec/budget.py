"""The budget section: the limit on bytes."""

from __future__ import annotations

from pydantic import Field

from shared.spec.base import Positive, Section


class BudgetSpec(Section):
    """The limit on code plus artifact, decimal bytes (docs/techniques.md 1.1)."""

    total_bytes: Positive = Field(
        16_000_000, description="limit on artifact and code together; `bytetwin score` says whether a model fits"
    )
