"""Random attention add-ons for `tests.parity.test_random_specs`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from shared.spec import Spec


@st.composite
def attention_fields(draw: st.DrawFn, num_layers: int, head_dim: int) -> dict[str, Any]:
    """Fields of a model section about its attention and SmearGate; half of the draws have most of them off."""
    if draw(st.booleans()):
        return {"smear_gate": draw(st.sampled_from(["none", "v1", "v2"]))}
    rope_dims = draw(st.sampled_from([0, 2, 4, head_dim]))
    value_layers = draw(st.integers(0, num_layers))
    return {
        "smear_gate": draw(st.sampled_from(["none", "v1", "v2"])),
        "attention": {
            "rope_dims": rope_dims,
            "ntk_positions": draw(st.integers(0, 4)) if rope_dims > 2 else 0,
            "window": draw(st.sampled_from([0, 2, 3])),
            "xsa_layers": draw(st.integers(0, num_layers)),
            "value_embed_dim": draw(st.integers(4, 12)) if value_layers else 0,
            "value_embed_layers": value_layers,
            "value_residual": num_layers > 1 and draw(st.booleans()),
            "output_gate": draw(st.sampled_from(["none", "full", "attn_out", "sparse"])),
            "gate_scale": draw(st.sampled_from([0.5, 1.0])),
            "gate_dims": draw(st.integers(4, 12)),
        },
    }


def with_document_mask(draw: st.DrawFn, model: dict[str, Any], has_document_start: bool) -> dict[str, Any]:
    """The model section, sometimes with a document mask where the vocabulary allows one."""
    attention = model.get("attention", {})
    return {**model, "attention": {**attention, "document_mask": has_document_start and draw(st.booleans())}}


def place_that_reaches_the_end(spec: Spec) -> int:
    """A symbol that the last distribution must depend on: the first one, or where a window or a document may hide
    that, the first of the last patch that the trunk reads."""
    masked = spec.model.attention.window or spec.model.attention.document_mask
    return (spec.model.num_patches - 2) * spec.model.patch_size if masked else 0
