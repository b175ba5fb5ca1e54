"""The budget section: what artifact and code may weigh together."""

from __future__ import annotations

from shared.spec.base import Positive, Section


class BudgetSpec(Section):
    """The limit on code plus artifact, decimal bytes (docs/techniques.md 1.1)."""

    total_bytes: Positive = 16_000_000
