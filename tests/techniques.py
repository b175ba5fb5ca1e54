"""Small specs with each technique of a model, and engines with weights, symbols and gradients for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from shared.engine.protocol import Engine
from shared.engine.registry import ENGINES
from shared.engine.synthetic import synthetic_engine
from shared.model import Forward, forward, initial_weights, random_weights
from shared.ops import NumpyOps
from shared.optim import step_hyperparameters
from shared.parity.gradient_checks import directional_rows, gradient_rows
from shared.spec import Spec, load_spec

Tensors = dict[str, np.ndarray]

every_engine = pytest.mark.parametrize("name", list(ENGINES))

BYTES = ["model.patch_size=1", "model.decoder.kind=linear"]
TOKENS = ["vocabulary.kind=tokens", "vocabulary.vocab_size=300"]
SHORT = ["model.seq_len=48", "training.batch_symbols=96", "evaluation.batch_symbols=96"]
# Several chunks, the last one not full.
CHUNKS = ["model.seq_len=88", "training.batch_symbols=176", "evaluation.batch_symbols=176", "model.state_dim=6"]
EVERY_ADD_ON = [
    *SHORT,
    "vocabulary.kind=byte260",
    "model.attention.rope_dims=4",
    "model.attention.ntk_positions=8",
    "model.attention.window=5",
    "model.attention.document_mask=true",
    "model.attention.xsa_layers=2",
    "model.attention.value_embed_dim=6",
    "model.attention.value_embed_layers=2",
    "model.attention.value_residual=true",
]
EVERY_WIRING = [
    "model.loop.first_layer=1",
    "model.loop.last_layer=2",
    "model.loop.extra_loops=1",
    "model.loop.gates=true",
    "model.skip_gates=true",
    "model.ln_scale=true",
    "model.mlp_dims=[96, 64, 96]",
    "model.parallel.first_layer=1",
]
ADAPTERS = [
    "model.tie_embeddings=false",
    "model.lora.rank=4",
    "model.lora.alpha=6.0",
    'model.lora.targets=["q", "k", "v", "o", "mlp", "head"]',
]
NGRAMS = ["model.ngram.rows=97", "model.ngram.dim=8", "model.ngram.longest=3"]
# Losses that exist in training only, one after the other.
TERMS = {
    "multi_symbol": ["training.loss.multi_symbol.weights=[0.5,0.25]"],
    "embed_prediction": ["training.loss.embed_prediction.weight=0.1", "training.loss.embed_prediction.symbols=5"],
    "chunk_prediction": [
        "training.loss.chunk_prediction.weight=0.1",
        "training.loss.chunk_prediction.chunk_patches=3",
        "training.loss.chunk_prediction.hidden_dim=16",
        "training.loss.chunk_prediction.latent_dim=8",
        "training.loss.chunk_prediction.directions=4",
    ],
    "code_entropy": [
        "training.loss.code_entropy.weight=0.1",
        "training.loss.code_entropy.row_stride=3",
        "training.loss.code_entropy.start_frac=0.0",
    ],
}
EVERY_TERM = [override for overrides in TERMS.values() for override in overrides]
RANGE_CODER = ["artifact.codec=range", "artifact.tensors=[{pattern='*mlp*',bits=4}]"]
EVERY_FACTOR = [*TOKENS, "training.loss.z_weight=0.01", "training.loss.focal_gamma=2.0"]
EVERY_FACTOR += ["training.loss.byte_weighted=true"]

DECODERS: dict[str, list[str]] = {
    "autoregressive": [],
    "autoregressive, untied": ["model.tie_embeddings=false"],
    "autoregressive, patch 1": ["model.patch_size=1", "model.decoder.kind=autoregressive"],
    "mlp": ["model.decoder.kind=mlp"],
    "linear": ["model.decoder.kind=linear"],
    "linear, tied": BYTES,
    "linear, untied": [*BYTES, "model.tie_embeddings=false"],
    "no mix, no skips": ["vocabulary.kind=byte260", "model.resid_mix=false", "model.unet_skips=false"],
}
TECHNIQUES: dict[str, list[str]] = {
    **DECODERS,
    "experts": ["model.decoder.kind=experts", "model.tie_embeddings=false"],
    "full gate": [*EVERY_ADD_ON, "model.attention.output_gate=full", "model.smear_gate=v1"],
    "sparse gate": [*EVERY_ADD_ON, "model.attention.output_gate=sparse", "model.smear_gate=v2", "model.patch_size=1"],
    "attn_out gate": [*EVERY_ADD_ON, "model.attention.output_gate=attn_out", "model.smear_gate=v2"],
    "hybrid": [*CHUNKS, 'model.mixers=["mamba2","attention","gated_delta"]', "model.patch_size=1"],
    "hybrid in a window": [
        *CHUNKS,
        'model.mixers=["gated_delta","mamba2","attention"]',
        "model.patch_size=4",
        "model.attention.window=5",
    ],
    "states alone": [
        *CHUNKS,
        'model.mixers=["mamba2","gated_delta","mamba2"]',
        "model.parallel.form=two_lane",
        "model.patch_size=2",
    ],
    "palm": [*EVERY_WIRING, "model.parallel.form=palm"],
    "two lanes": [*EVERY_WIRING, "model.parallel.form=two_lane"],
    "n-grams": [*NGRAMS, "vocabulary.kind=byte260"],
    "n-grams of the decoder": [*NGRAMS, "model.ngram.reader=decoder", "vocabulary.kind=byte260"],
    "factored table": ["model.embed_rank=10"],
    "factored tokens": [*BYTES, *TOKENS, "model.start=document_start", "model.embed_rank=10"],
    "adapters": ADAPTERS,
    "auxiliary losses": EVERY_TERM,
    "codes of the range coder": [*TERMS["code_entropy"], *RANGE_CODER],
}


def tiny(*overrides: str, compiled: bool = False) -> Spec:
    """The preset `tiny`, which compiles nothing unless asked to."""
    return load_spec("tiny", [f"training.compile={str(compiled).lower()}", *overrides])


def symbols(spec: Spec, rows: int = 0, seed: int = 0) -> np.ndarray:
    """Random symbols, int32 [rows, T], as many rows as a batch of the spec has unless given; where the vocabulary marks
    documents, some begin."""
    rng = np.random.default_rng(seed)
    shape = (rows or spec.training.batch_symbols // spec.model.seq_len, spec.model.seq_len)
    x = rng.integers(0, spec.vocabulary.size, shape).astype(np.int32)
    if spec.vocabulary.document_start is not None:
        x[rng.random(x.shape) < 0.05] = spec.vocabulary.document_start
    return x


def started(name: str, spec: Spec, weights: Mapping[str, np.ndarray] | None = None, model: Forward = forward) -> Engine:
    """An engine with the weights, or with random ones."""
    engine = synthetic_engine(name, spec, model)
    engine.initialise(random_weights(spec, 3) if weights is None else weights)
    return engine


def trained(name: str, spec: Spec, weights: Mapping[str, np.ndarray] | None = None, steps: int = 3) -> Engine:
    """An engine after steps on other symbols each, from the weights or from those a run starts with."""
    engine = started(name, spec, initial_weights(spec) if weights is None else weights)
    for step in range(steps):
        numbers = step_hyperparameters(spec, step, step / spec.training.steps)
        engine.train_step(symbols(spec, seed=step), numbers)()
    return engine


def oracle_params(spec: Spec, seed: int = 3) -> Tensors:
    """Random weights as the oracle reads them, float64."""
    return {name: NumpyOps().asarray(value) for name, value in random_weights(spec, seed).items()}


def assert_gradients_agree(spec: Spec, x: np.ndarray, gradients: Mapping[str, Tensors]) -> None:
    """Of random weights: those of the engines with each other, and each with differences of the oracle."""
    of_engines = {name: gradients[name] for name in gradients if name in ENGINES}
    rows = gradient_rows(spec, gradients) + directional_rows(spec, random_weights(spec, 3), x, of_engines, seed=3)
    assert [row for row in rows if not row.passed] == []


def assert_same_gradients(spec: Spec, left: Tensors, right: Tensors) -> None:
    assert [row for row in gradient_rows(spec, {"left": left, "right": right}) if not row.passed] == []
