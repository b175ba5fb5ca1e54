"""Random training losses for `tests.parity.test_random_specs`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def training_fields(draw: st.DrawFn, reads_tokens: bool) -> dict[str, Any]:
    """Fields of a training section that change the gradient; half of the draws have none."""
    if draw(st.booleans()):
        return {}
    loss = {
        "z_weight": draw(st.sampled_from([0.0, 1e-3, 0.1])),
        "focal_gamma": draw(st.sampled_from([0.0, 1.0, 1.5, 2.0])),
        "byte_weighted": reads_tokens and draw(st.booleans()),
    }
    form = draw(st.sampled_from(["off", "straight_through", "noise"]))
    return {"loss": loss, "qat": {"form": form, "bits": draw(st.integers(4, 8))}}
