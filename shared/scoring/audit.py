"""All checks on one scorer and its score, as one report (docs/techniques.md 1.4).

`audit_scorer` runs at the end of every run and in `bytetwin audit`, which with `--full` also trains a model on random
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.stream import SymbolStream
from data.token_stream import TokenStream
from shared import tolerances
from shared.engine.protocol import Scorer
from shared.model import parameter_counts
from shared.scoring.adaptation import score_adapted
from shared.scoring.bits_per_byte import Score
from shared.scoring.checks import (
    Check,
    check_case,
    check_coverage,
    check_denominator,
    check_document_starts,
    check_plausibility,
)
from shared.scoring.isolation import check_isolation
from shared.scoring.journal import check_journal
from shared.scoring.later_text import check_later_text
from shared.scoring.leaks import check_leaks
from shared.scoring.order import check_order, check_order_of_score
from shared.scoring.positions import check_positions
from shared.scoring.probe import MIN_ROWS, make_probe

_TEXT_SYMBOLS = 1 << 20
# Seconds by which `make smoke` may take longer. Two free cores disturb 752 of 1,024 positions in it, and some hundred
# of larger models. A GPU should reach all 2,048.
DISTURB_SECONDS = 14.0
# Most rows in a pass over disturbed windows: some passes are always made, whatever they cost.
MOST_ROWS = 64


@dataclass(frozen=True)
class AuditReport:
    """The checks that were made, in order."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def with_checks(self, *checks: Check) -> AuditReport:
        """The report with more checks."""
        return AuditReport((*self.checks, *checks))

    def to_document(self) -> dict[str, Any]:
        """Plain values for score.json; a measurement that is not a number becomes None."""
        return {"passed": self.passed, "checks": [_plain(asdict(check)) for check in self.checks]}


def audit_scorer(
    scorer: Scorer, stream: SymbolStream, score: Score | None = None, *, seed: int = 0, seconds: float = DISTURB_SECONDS
) -> AuditReport:
    """Check a scorer on text of a stream and on noise; with `score`, its accounting on that stream as well.

    `score` must be of the whole of `stream`. Every position of a window is disturbed if `seconds` are enough for that;
    those where mistakes are likely always are. A score with adaptation is repeated on an excerpt for as long. The rest
    takes a few passes.
    """
    spec = scorer.spec
    text = stream.read(0, min(stream.num_symbols, _TEXT_SYMBOLS))
    # Passes of the shape that was scored, for which an engine has compiled, unless that is wasteful.
    rows = MIN_ROWS if score is None else min(score.evidence.pass_rows, MOST_ROWS)
    probe = make_probe(spec, text, seed, rows)
    checks = check_leaks(scorer, probe, seconds)
    if spec.model.attention.document_mask:
        checks.append(check_isolation(scorer, probe, seed))
    if score is None:
        checks.append(check_order(scorer, probe))
    else:
        if not score.evidence.kept:
            # With adaptation no window could be scored again: the model is another one by now.
            checks += [check_order(scorer, probe), check_journal(score.journal, stream.num_symbols)]
            checks.append(check_later_text(score_adapted, scorer, stream, seed=seed, seconds=seconds))
        else:
            checks.append(check_order_of_score(scorer, score, stream))
        checks += [
            check_positions(score, spec.model.patch_size, stream),
            check_coverage(score, stream.num_symbols),
            check_denominator(score),
            check_plausibility(score, parameter_counts(spec)["total"]),
        ]
        if spec.vocabulary.document_start is not None:
            checks.append(check_document_starts(stream))
        if isinstance(stream, TokenStream):
            checks.append(check_case(stream))
    return AuditReport(tuple(checks))


def check_initial_loss(fresh: Scorer, seed: int = 0) -> Check:
    """A scorer of initial weights knows nothing: its loss is ln V (docs/techniques.md 1.4)."""
    spec = fresh.spec
    x = np.random.default_rng(seed).integers(0, spec.vocabulary.size, (4, spec.model.seq_len)).astype(np.int32)
    nats = float(np.mean(fresh.score(x), dtype=np.float64))
    off = abs(nats - math.log(spec.vocabulary.size))
    detail = f"{nats:.4f} nats per symbol before training; ln V is {math.log(spec.vocabulary.size):.4f}"
    return Check("initial_loss", off <= tolerances.INITIAL_LOSS_ABS, off, tolerances.INITIAL_LOSS_ABS, detail)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with None for what is not a number, which JSON cannot express."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
