"""Random tables of symbols, initial values and adapters for `tests.parity.test_random_specs`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def with_lora(draw: st.DrawFn, model: dict[str, Any]) -> dict[str, Any]:
    """Adapters on some matrices in a third of the draws."""
    if draw(st.sampled_from([True, True, False])):
        return {}
    has_head = not model["tie_embeddings"] and model["decoder"]["kind"] in ("linear", "autoregressive")
    has_qkv = set(model.get("mixers") or ["attention"]) != {"mamba2"}
    names = [*("qkv" if has_qkv else ""), "o", "mlp", *(["head"] if has_head else [])]
    rank = draw(st.integers(1, min(4, model["num_kv_heads"] * model["head_dim"] - 1)))
    targets = draw(st.lists(st.sampled_from(names), min_size=1, max_size=6, unique=True))
    return {"lora": {"rank": rank, "alpha": draw(st.sampled_from([0.5, 1.0, 1.5])) * rank, "targets": targets}}


def with_table(draw: st.DrawFn, model: dict[str, Any]) -> dict[str, Any]:
    """The model section with a factored table in a third of the draws, and with what its weights start from."""
    # Random factors of a lower rank give logits so large that their own rounding reaches the tolerance.
    rank = draw(st.sampled_from([0, 0, 1])) and draw(st.integers(8, model["model_dim"] - 1))
    return {
        **model,
        "embed_rank": rank,
        "embed_init": draw(st.sampled_from(["normal", "overtone", "bigram_svd"])),
        "matrix_init": draw(st.sampled_from(["uniform", "orthogonal"])),
        **with_lora(draw, model),
        "resid_mix_init": draw(st.sampled_from(["first", "phase"])) if model["resid_mix"] else "first",
    }
