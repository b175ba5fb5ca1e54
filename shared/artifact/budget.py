"""The bytes that count against the budget, and how close the codes are to their entropy (docs/techniques.md 1.1).

Counted code is one file: the self-contained script that trains on an engine and scores (shared.script), as
`bytetwin record` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.engine.registry import ENGINES
from shared.quantisers.entropy import entropy_of_shares
from shared.script.running import running_script
from shared.spec import Spec


@dataclass(frozen=True)
class BudgetReport:
    """Bytes of an artifact, its code and the limit."""

    artifact_bytes: int
    code_bytes: int
    limit_bytes: int

    @property
    def total_bytes(self) -> int:
        """Artifact and code together."""
        return self.artifact_bytes + self.code_bytes

    @property
    def fits(self) -> bool:
        """Whether the total is within the limit."""
        return self.total_bytes <= self.limit_bytes


def budget_report(artifact_bytes: int, engine: str | None, spec: Spec) -> BudgetReport:
    """The report for an artifact of a given size of a spec that an engine trains."""
    return BudgetReport(artifact_bytes, code_bytes(engine, spec), spec.budget.total_bytes)


def code_bytes(engine: str | None, spec: Spec) -> int:
    """Bytes of the script that trains this spec on an engine and scores it, or where that script is what runs here, of
    its file. For None, and for "numpy", which trains nothing, it is the largest script of any engine."""
    script = running_script()
    if script is not None:
        return script.stat().st_size
    # Not in the script itself, which is not built from modules that it does not have.
    from shared.script.build import training_script

    return max(len(training_script(name, spec)) for name in ([engine] if engine in ENGINES else ENGINES))


def entropy_bits(codes: NDArray[np.int8]) -> float:
    """Order-0 entropy of int8 codes in bits per weight: the size that an ideal coder without context reaches."""
    if codes.size == 0:
        return 0.0
    counts = np.bincount(codes.reshape(-1).astype(np.int16) + 128)
    return entropy_of_shares(counts / codes.size)
