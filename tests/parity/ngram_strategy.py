"""Random n-gram embeddings for `tests.parity.test_random_specs`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def ngram_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a model section about n-grams at its input; two thirds of the draws have none."""
    if draw(st.sampled_from([True, True, False])):
        return {}
    return {
        "ngram": {
            "rows": draw(st.integers(2, 60)),
            "dim": draw(st.integers(4, 12)),
            "longest": draw(st.integers(2, 6)),
            "multiplier": draw(st.sampled_from([1, 31, 256, 1021, 32_767])),
        }
    }
