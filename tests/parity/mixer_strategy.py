"""Random mixers for `tests.parity.test_random_specs`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def with_mixers(draw: st.DrawFn, model: dict[str, Any]) -> dict[str, Any]:
    """The model section, in a third of the draws with other mixers on some layers, and without the attention add-ons
    that do not go with them."""
    if draw(st.sampled_from([True, False, False])):
        count = model["num_layers"]
        layers = st.sampled_from(["attention", "mamba2", "gated_delta"])
        mixers = draw(st.lists(layers, min_size=count, max_size=count))
        changes = {"mixers": mixers, "state_dim": draw(st.integers(3, 12))}
        return {**model, **changes, "attention": _fitting(model.get("attention", {}), mixers)}
    return model


def _fitting(attention: dict[str, Any], mixers: list[str]) -> dict[str, Any]:
    """The attention section as far as layers without attention allow it."""
    others = [layer for layer, mixer in enumerate(mixers) if mixer != "attention"]
    if not others:
        return attention
    at_end = len(mixers) - 1 - others[-1]
    value_layers = min(attention.get("value_embed_layers", 0), at_end)
    off: dict[str, Any] = {"document_mask": False, "output_gate": "none"}
    if len(others) == len(mixers):
        off |= {"window": 0, "ntk_positions": 0}
    if others[0] == 0 or len(others) == len(mixers) - 1:
        off["value_residual"] = False
    return {
        **attention,
        **off,
        "xsa_layers": min(attention.get("xsa_layers", 0), at_end),
        "value_embed_layers": value_layers,
        "value_embed_dim": attention.get("value_embed_dim", 0) if value_layers else 0,
    }
