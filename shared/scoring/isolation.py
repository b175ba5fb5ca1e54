"""Checks that a model which claims to keep documents apart does so.

Reading the document before is not a leak: it is earlier text. But a spec with `model.attention.document_mask` says that
its scores do not depend on it, and one unmasked path (SmearGate in PR #1797, fixed in #1851) makes that untrue.
"""

from __future__ import annotations

import numpy as np

from shared import tolerances
from shared.engine.protocol import Scorer
from shared.scoring.checks import Check
from shared.scoring.probe import Probe, in_passes


def check_isolation(scorer: Scorer, probe: Probe, seed: int = 0) -> Check:
    """Start a document at x[t] and replace the patches before the one of t: from the next patch on no score changes.

    Where the decoder reads the last K symbols directly, from the first patch on whose K earlier symbols stay: within a
    patch every symbol may depend on what the first one reads.
    """
    model, start = scorer.spec.model, scorer.spec.vocabulary.document_start
    rows, time = probe.x.shape
    patches, patch_size = time // model.patch_size, model.patch_size
    reach = model.decoder.context if model.decoder.kind == "autoregressive" else 1
    # Patches from the one that holds the start to the next one that reads nothing before it.
    behind = max(1, -(-reach // patch_size))
    if start is None or patches < behind + 2:
        return Check("isolation", True, 0.0, tolerances.CAUSALITY_ABS, "no document start fits in a window")
    rng = np.random.default_rng(seed)
    first = rng.integers(1, patches - behind, rows) * patch_size
    x = probe.x.copy()
    x[np.arange(rows), first + rng.integers(0, patch_size, rows)] = start
    position = np.arange(time)
    other = np.where(position < first[:, None], probe.other, x)
    apart = position >= first[:, None] + behind * patch_size
    before, after = (in_passes(scorer.score, symbols, probe.pass_rows) for symbols in (x, other))
    change = np.where(apart, np.abs(after - before), 0.0)
    worst = float(change.max())
    detail = f"scores of a document moved by {worst:.1e} nats when the one before it changed"
    return Check("isolation", worst <= tolerances.CAUSALITY_ABS, worst, tolerances.CAUSALITY_ABS, detail)
