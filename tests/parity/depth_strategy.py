"""Random depth wiring for `tests.parity.test_random_specs`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

MOST_VISITS = 8


@st.composite
def depth_fields(draw: st.DrawFn, num_layers: int) -> dict[str, Any]:
    """Fields of a model section about the order of its layers and what their blocks look like."""
    first = draw(st.integers(0, num_layers - 1))
    last = draw(st.integers(first, num_layers - 1))
    # Rounding grows with every pass: a dozen layers of random weights reach the tolerance of the logits.
    most_loops = min(2, (MOST_VISITS - num_layers) // (last - first + 1))
    loop = {
        "first_layer": first,
        "last_layer": last,
        "extra_loops": draw(st.sampled_from([0, *range(most_loops + 1)])),
        "gates": draw(st.booleans()),
        "skips": draw(st.sampled_from(["halves", "outside"])),
    }
    form = draw(st.sampled_from(["off", "palm", "two_lane"]))
    lanes_may_start = [
        layer
        for layer in range(num_layers)
        if form != "two_lane" or not loop["extra_loops"] or not first < layer <= last
    ]
    return {
        "mlp_dims": draw(st.lists(st.integers(16, 48), min_size=num_layers, max_size=num_layers) | st.just([])),
        "skip_gates": draw(st.booleans()),
        "ln_scale": draw(st.booleans()),
        "loop": loop,
        "parallel": {
            "form": form,
            "first_layer": draw(st.sampled_from(lanes_may_start)),
            "split": draw(st.sampled_from(["after_skip", "before_skip"])) if form == "two_lane" else "after_skip",
        },
    }
