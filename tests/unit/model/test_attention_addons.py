"""Attention add-ons and SmearGate: each against its definition, its first values, and what it may read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.engine.oracle import Oracle
from shared.model import initial_weights, parameter_manifest, random_weights
from shared.model.attention import rope_base, without_own_value
from shared.model.block_shape import attention_addons
from shared.model.embedding import previous_position
from shared.model.layer import position_documents
from shared.ops import NumpyOps
from shared.scoring.isolation import check_isolation
from shared.scoring.probe import make_probe
from shared.spec import load_spec, with_overrides
from shared.tolerances import ORACLE_OPERATION_REL
from tests.implementations import OPS, normal
from tests.techniques import TECHNIQUES, symbols, tiny

EXACT = OPS["numpy"]


def test_exclusive_attention_leaves_nothing_along_the_own_value():
    y, v = normal(1, 2, 5, 4, 8).astype(float), normal(2, 2, 5, 2, 8).astype(float)
    out = without_own_value(EXACT, y, v, 1e-12)
    own = np.repeat(v, 2, axis=2)
    assert np.abs((out * own).sum(axis=-1)).max() <= 1e-9
    # What was taken away is along v.
    unit = own / np.linalg.norm(own, axis=-1, keepdims=True)
    taken = y - out
    assert np.abs(taken - (taken * unit).sum(axis=-1, keepdims=True) * unit).max() <= 1e-9


def test_smear_does_not_cross_a_document_start():
    x = normal(1, 1, 6, 3).astype(float)
    documents = np.array([[0, 0, 1, 1, 2, 2]])
    previous = previous_position(EXACT, x, documents)
    expected = np.zeros_like(x)
    for place in (1, 3, 5):
        expected[:, place] = x[:, place - 1]
    assert (previous == expected).all()
    assert (previous_position(EXACT, x, None)[:, 1:] == x[:, :-1]).all()


@pytest.mark.parametrize("patch_size", [1, 4])
def test_a_position_counts_the_document_starts_it_has_read(patch_size: int):
    spec = tiny("vocabulary.kind=byte260", "model.smear_gate=v1", f"model.patch_size={patch_size}")
    x = symbols(spec)
    documents = position_documents(EXACT, spec, EXACT.asarray(x))
    for row, numbers in zip(x, documents, strict=True):
        assert [np.sum(row[: place * patch_size] == 1) for place in range(spec.model.num_patches)] == list(numbers)
    assert position_documents(EXACT, tiny("vocabulary.kind=byte260"), x) is None
    assert position_documents(EXACT, tiny("model.smear_gate=v1"), x) is None


def test_the_base_of_rope_beyond_the_training_window():
    addons = attention_addons(tiny("model.attention.ntk_positions=8", "model.attention.rope_dims=6").model, 0)
    assert rope_base(1e4, addons, 8) == 1e4
    assert rope_base(1e4, addons, 32) == pytest.approx(1e4 * 4 ** (6 / 4))


def test_ntk_leaves_the_training_window_alone_and_moves_longer_ones():
    plain, stretched = tiny(), tiny("model.attention.ntk_positions=6")
    weights, x = random_weights(plain, 1), symbols(plain)
    short = x[:, :24]
    assert (Oracle(plain, weights).log_probs(short) == Oracle(stretched, weights).log_probs(short)).all()
    assert np.abs(Oracle(plain, weights).log_probs(x) - Oracle(stretched, weights).log_probs(x)).max() > 1e-3


def test_rope_turns_the_first_features_only():
    """Without RoPE the trunk cannot tell the order of what it attends to; with a few features it can."""
    spec = tiny("model.patch_size=1", "model.num_layers=1", "model.attention.rope_dims=0")
    x = symbols(spec, rows=1)
    swapped = x.copy()
    swapped[:, [3, 7]] = x[:, [7, 3]]
    for rope_dims, moves in ((0, False), (2, True), (8, True)):
        oracle = Oracle(
            tiny("model.patch_size=1", "model.num_layers=1", f"model.attention.rope_dims={rope_dims}"),
            random_weights(spec, 2),
        )
        change = np.abs(oracle.log_probs(swapped) - oracle.log_probs(x))[:, -1].max()
        assert (change > 1e-4) == moves, rope_dims


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("model.attention.xsa_layers=2", []),
        ("model.attention.window=3", []),
        ("model.attention.value_residual=true", ["layers.1.attn.value_resid", "layers.2.attn.value_resid"]),
        ("model.attention.output_gate=full", [f"layers.{layer}.attn.gate.weight" for layer in range(3)]),
        ("model.smear_gate=v1", ["embed.smear_logit"]),
        ("model.smear_gate=v2", ["embed.smear_gate.weight", "embed.smear_scale"]),
    ],
)
def test_parameters_of_each(override: str, names: list[str]):
    plain = [parameter.name for parameter in parameter_manifest(tiny())]
    added = [parameter.name for parameter in parameter_manifest(tiny(override)) if parameter.name not in plain]
    assert added == names


def test_shapes_of_value_embeddings_and_gates():
    spec = tiny(*TECHNIQUES["attn_out gate"])
    shapes = {parameter.name: parameter.shape for parameter in parameter_manifest(spec)}
    assert shapes["value_embed.weight"] == (260, 6)
    assert shapes["value_embed.value_proj.weight"] == (2 * 8, 4 * 6)
    assert "layers.0.attn.value_embed_scale" not in shapes and shapes["layers.1.attn.value_embed_scale"] == (1,)
    assert shapes["layers.0.attn.gate.weight"] == (4, 12)
    assert not any(".attn.gate" in name for name in shapes if name.startswith("decoder."))


def test_what_a_gate_does_at_first():
    """attn_out starts at one and v2 with nothing, so they leave a fresh model alone; sparse starts at a half."""
    weights = random_weights(tiny(), 3)
    x = symbols(tiny())
    plain = Oracle(tiny(), weights).log_probs(x)
    for override, same in (
        ("model.attention.output_gate=attn_out", True),
        ("model.attention.output_gate=sparse", False),
        ("model.smear_gate=v2", True),
        ("model.smear_gate=v1", False),
    ):
        spec = tiny(override)
        fresh = {name: value for name, value in initial_weights(spec).items() if name not in weights}
        change = np.abs(Oracle(spec, {**weights, **fresh}).log_probs(x) - plain).max()
        assert (change <= ORACLE_OPERATION_REL) if same else (change > 1e-3), override


def test_a_window_reaches_back_no_further():
    spec = tiny("model.patch_size=1", "model.attention.window=3", "model.num_layers=2")
    x = symbols(spec, rows=1)
    oracle = Oracle(spec, random_weights(spec, 5))
    changed = x.copy()
    changed[:, 10] = (changed[:, 10] + 1) % 256
    moved = np.abs(oracle.log_probs(changed) - oracle.log_probs(x)).max(axis=(0, 2))
    # Position 11 has it as input; each layer carries it two places on.
    assert np.flatnonzero(moved > ORACLE_OPERATION_REL).tolist() == [11, 12, 13, 14, 15]


class CountingOps(NumpyOps):
    """Counts the layers that attend in one operation."""

    def __init__(self) -> None:
        self.joint = 0

    def self_attention(self, *inputs: Any) -> Any:
        self.joint += 1
        return super().self_attention(*inputs)


@pytest.mark.parametrize(
    ("overrides", "joint"),
    [
        (["model.attention.output_gate=sparse"], 3),
        (["model.attention.window=3"], 0),
        (["vocabulary.kind=byte260", "model.attention.document_mask=true"], 0),
        (["model.attention.xsa_layers=1"], 2),
        (["model.attention.value_embed_dim=6", "model.attention.value_embed_layers=2"], 1),
        (["model.attention.value_residual=true"], 0),
    ],
)
def test_layers_attend_in_one_operation_where_nothing_reads_its_parts(overrides: list[str], joint: int):
    spec, ops = tiny(*overrides), CountingOps()
    Oracle(spec, random_weights(spec, 1), ops=ops).score(symbols(spec, rows=1))
    assert ops.joint == joint + spec.model.decoder.num_layers


@pytest.mark.parametrize("context", [1, 3, 4, 7])
def test_a_decoder_that_reads_beyond_its_patch_is_no_leak(context: int):
    """The later symbols of a patch read its first one, and that one its last `context` symbols."""
    shape = ["vocabulary.kind=byte260", "model.seq_len=36", "model.patch_size=3", "training.batch_symbols=288"]
    shape += ["evaluation.batch_symbols=288", f"model.decoder.context={context}"]
    spec = load_spec("tiny", [*shape, "model.attention.document_mask=true"])
    unmasked = with_overrides(spec, ["model.attention.document_mask=false"])
    weights = random_weights(spec, 3)
    probe = make_probe(spec, np.random.default_rng(0).integers(4, 260, 400).astype(np.int32), 0)
    assert check_isolation(Oracle(spec, weights), probe).passed
    assert not check_isolation(Oracle(unmasked, weights), probe).passed
