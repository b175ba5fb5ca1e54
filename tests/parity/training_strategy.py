"""Random training losses for `tests.parity.test_random_specs`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def training_fields(draw: st.DrawFn, reads_tokens: bool, model: dict[str, Any]) -> dict[str, Any]:
    """Fields of a training section that change the gradient; half of the draws have none."""
    if draw(st.booleans()):
        return {}
    loss = {
        "z_weight": draw(st.sampled_from([0.0, 1e-3, 0.1])),
        "focal_gamma": draw(st.sampled_from([0.0, 1.0, 1.5, 2.0])),
        "byte_weighted": reads_tokens and draw(st.booleans()),
        **draw(auxiliary_fields(model["seq_len"], model["seq_len"] // model["patch_size"])),
    }
    form = draw(st.sampled_from(["off", "straight_through", "noise"]))
    return {"loss": loss, "qat": {"form": form, "bits": draw(st.integers(4, 8))}}


@st.composite
def quantisers(draw: st.DrawFn) -> dict[str, Any]:
    """A grid that training can read, with rounding and corrections that it does not see."""
    return {
        "method": draw(st.sampled_from(["row_max", "sd_clip", "ternary", "uniform"])),
        "bits": draw(st.integers(4, 8)),
        "rounding": draw(st.sampled_from(["nearest", "gptq"])),
        "step": draw(st.sampled_from([0.1, 0.4, 2.0])),
        "clip_sd": draw(st.sampled_from([3.0, 12.85, 20.0])),
        "group": draw(st.sampled_from([1, 5, 16, 128])),
        "lqer_rank": draw(st.sampled_from([0, 4])),
    }


@st.composite
def artifact_fields(draw: st.DrawFn) -> dict[str, Any]:
    """An artifact section: the codes that losses read and their coder, and in one of two draws other codes for some
    matrices."""
    patterns = st.sampled_from(["*", "layers.*", "*mlp*", "layers.?.attn.q_proj.weight"])
    rules = draw(st.lists(st.tuples(patterns, quantisers()), max_size=2)) if draw(st.booleans()) else []
    return {
        "matrix": draw(quantisers()),
        "embed": draw(quantisers()),
        "tensors": [{"pattern": pattern, **rule} for pattern, rule in rules],
        "lqer_tensors": draw(st.integers(0, 3)),
        "codec": draw(st.sampled_from(["brotli", "range"])),
    }


@st.composite
def auxiliary_fields(draw: st.DrawFn, seq_len: int, num_patches: int) -> dict[str, Any]:
    """Losses that exist in training only, none in two of three draws."""
    if draw(st.integers(0, 2)):
        return {}
    weights = st.lists(st.sampled_from([0.1, 0.5]), max_size=num_patches - 1)
    sometimes = st.sampled_from([0.0, 0.1])
    return {
        "multi_symbol": {"weights": draw(weights)},
        "embed_prediction": {"weight": draw(sometimes), "symbols": draw(st.integers(1, min(16, seq_len)))},
        "chunk_prediction": {
            "weight": draw(sometimes),
            "chunk_patches": draw(st.integers(1, num_patches - 1)),
            "hidden_dim": draw(st.integers(16, 24)),
            "latent_dim": draw(st.integers(2, 12)),
            "regulariser_weight": draw(st.sampled_from([0.0, 0.5])),
            "directions": draw(st.integers(1, 5)),
        },
        "code_entropy": {
            "weight": draw(sometimes),
            "temperature": draw(st.sampled_from([0.1, 0.5])),
            "row_stride": draw(st.integers(1, 40)),
            "start_frac": 0.0,
        },
    }
