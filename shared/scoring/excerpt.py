"""A short text in memory that a score may be made of, to look at the scoring and not at the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from shared.engine.protocol import Scorer
from shared.spec import Spec
from shared.spec.adaptation import AdaptationSpec


@dataclass(frozen=True)
class Excerpt:
    """What scoring reads of a SymbolStream: symbols [T] int32, of which those in `fixed` [T] stay where others are
    replaced, and the positions `starts` at which documents begin. A symbol counts as a byte."""

    name: str
    symbols: np.ndarray
    fixed: np.ndarray
    starts: np.ndarray

    @property
    def num_symbols(self) -> int:
        return len(self.symbols)

    @property
    def num_bytes(self) -> int:
        return len(self.symbols)

    @property
    def num_documents(self) -> int:
        return len(self.starts)

    def read(self, start: int, count: int) -> np.ndarray:
        return self.symbols[start : start + count]

    def byte_counts(self, start: int, count: int) -> np.ndarray:
        return np.ones(count, np.int64)

    def document_ids(self, start: int, count: int) -> np.ndarray:
        return np.searchsorted(self.starts, np.arange(start, start + count), side="right") - 1

    def text_bytes(self) -> bytes:
        return bytes(len(self.symbols))

    def replaced(self, cut: int, rng: np.random.Generator) -> Excerpt:
        """The same with other symbols of the excerpt from position `cut` on."""
        symbols = self.symbols.copy()
        later = np.flatnonzero(~self.fixed[cut:]) + cut
        symbols[later] = rng.choice(self.symbols[~self.fixed], len(later))
        # At the cut itself chance may not leave things as they are.
        for position in later[:1]:
            symbols[position] = next(
                (symbol for symbol in self.symbols[~self.fixed] if symbol != self.symbols[position]), symbols[position]
            )
        return Excerpt(self.name, symbols, self.fixed, self.starts)


def with_adaptation(spec: Spec, **changes: object) -> Spec:
    """The spec with other settings in evaluation.adaptation, checked as any are."""
    adaptation = AdaptationSpec.model_validate({**spec.evaluation.adaptation.model_dump(), **changes})
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"adaptation": adaptation})})


def with_spec(scorer: Scorer, spec: Spec) -> Scorer:
    """The scorer under another spec of the same function, so under another protocol."""
    return cast(Scorer, _WithSpec(scorer, spec))


class _WithSpec:
    def __init__(self, scorer: Scorer, spec: Spec) -> None:
        self._scorer, self.spec = scorer, spec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)
