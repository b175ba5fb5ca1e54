"""Random attention, mixers, n-grams, tables of symbols and adapters for `tests.parity.test_random_specs`."""

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


@st.composite
def ngram_fields(draw: st.DrawFn, decoder: str) -> dict[str, Any]:
    """Fields of a model section about n-grams, with a decoder of that kind; two thirds of the draws have none."""
    if draw(st.sampled_from([True, True, False])):
        return {}
    return {
        "ngram": {
            "rows": draw(st.integers(2, 60)),
            "dim": draw(st.integers(4, 12)),
            "longest": draw(st.integers(2, 6)),
            "multiplier": draw(st.sampled_from([1, 31, 256, 1021, 32_767])),
            "reader": draw(st.sampled_from(["trunk", "decoder"] if decoder == "autoregressive" else ["trunk"])),
        }
    }


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
