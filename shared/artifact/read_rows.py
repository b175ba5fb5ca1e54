"""The share of a table of n-grams that training reads (docs/techniques.md 11.4).

A row that no symbol of the training text reads stays zero, as it began, and costs next to nothing.
"""

from __future__ import annotations

import math
import re

from shared.model.manifest import Parameter
from shared.spec import Spec

# Different n-grams in a million bytes of English Wikipedia, and the power of the bytes with which they grow, up to
# twenty million; web pages have as many, pages of one domain a fifth fewer. By n.
DIFFERENT = {2: (3_500, 0.32), 3: (22_400, 0.41), 4: (78_400, 0.52), 5: (176_000, 0.62), 6: (292_000, 0.70)}
PER_BYTES = 1e6
# Bytes that a token stands for at least.
TOKEN_BYTES = 2
# Nearly all pairs are of these, and where a table is small their hashes do not reach all of its rows.
COMMON_BYTES = range(32, 127)

TABLE = re.compile(r"ngram_embed\.tables\.(\d+)\.weight")


def share_read(parameter: Parameter, spec: Spec, steps: int) -> float:
    """The expected share of a tensor's rows that `steps` optimizer steps change, in (0, 1]: 1 but for n-grams."""
    found = TABLE.fullmatch(parameter.name)
    if found is None:
        return 1.0
    length, rows = int(found[1]), parameter.shape[0]
    in_bytes = length * (TOKEN_BYTES if spec.vocabulary.reads_tokens else 1)
    count, power = DIFFERENT[min(in_bytes, max(DIFFERENT))]
    different = count * (steps * spec.training.batch_symbols / PER_BYTES) ** power
    # Each n-gram has a row at random; those that share one are no second row.
    share = -math.expm1(-different / rows)
    if in_bytes == 2:
        multiplier = spec.model.ngram.multiplier
        reached = {(first * multiplier + second) % rows for first in COMMON_BYTES for second in COMMON_BYTES}
        share = min(share, len(reached) / rows)
    return share
