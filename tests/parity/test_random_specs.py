"""Random valid specs: the three implementations agree, and no symbol sees itself or the future."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.engine.oracle import Oracle
from shared.engine.package import make_ops
from shared.engine.protocol import Scorer
from shared.engine.registry import ENGINES
from shared.engine.synthetic import comparison_weights, synthetic_engine
from shared.parity.function_checks import logit_rows, nats_rows, rounding_of_logits
from shared.parity.gradient_checks import gradient_rows, loss_rows, oracle_loss, rounding_of_gradients
from shared.parity.held_kinks import HeldKinks
from shared.parity.trace import trace_forward
from shared.scoring.isolation import check_isolation
from shared.scoring.probe import make_probe, required_positions
from shared.spec import Spec, spec_from_dict
from shared.tolerances import CAUSALITY_ABS, KINK_REL
from tests.implementations import examples
from tests.parity.depth_strategy import depth_fields
from tests.parity.model_strategy import (
    attention_fields,
    ngram_fields,
    place_that_reaches_the_end,
    with_document_mask,
    with_mixers,
    with_table,
)
from tests.parity.training_strategy import artifact_fields, training_fields

ROWS = 2
# Share of symbols that start a document, where the vocabulary marks them.
DOCUMENT_STARTS_FRAC = 0.1


@st.composite
def model_sections(draw: st.DrawFn) -> dict[str, Any]:
    """A model section with everything drawn that the schema lets vary, at widths of 16 to 37.

    Narrower ones are badly conditioned: four numbers that nearly cancel have a root mean square of few digits.
    """
    patch_size = draw(st.sampled_from([1, 1, 1, *range(1, 17)]))
    kind = draw(st.sampled_from(["autoregressive", "mlp", "linear", "experts"]))
    num_heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    can_tie = kind == "autoregressive" or (patch_size == 1 and kind == "linear")
    decoder_heads = draw(st.sampled_from([1, 2, 3]))
    num_layers = draw(st.integers(1, 5))
    head_dim = draw(st.sampled_from([6, 8, 10, 16]))
    return {
        **draw(attention_fields(num_layers, head_dim)),
        **draw(depth_fields(num_layers)),
        **draw(ngram_fields(kind)),
        "num_layers": num_layers,
        "model_dim": num_heads * draw(st.integers(-(-16 // num_heads), -(-32 // num_heads))),
        "num_heads": num_heads,
        "num_kv_heads": draw(st.sampled_from([heads for heads in (1, 2, 3, 4, 6) if num_heads % heads == 0])),
        "head_dim": head_dim,
        "mlp_dim": draw(st.integers(16, 48)),
        "seq_len": patch_size * draw(st.integers(2, 5)),
        "patch_size": patch_size,
        "norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "rope_base": draw(st.sampled_from([100.0, 1e4])),
        "q_gain_init": draw(st.sampled_from([1.5, 5.25])),
        "mlp_negative_slope": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        "logit_softcap": draw(st.sampled_from([5.0, 30.0])),
        "resid_mix": draw(st.booleans()),
        "unet_skips": draw(st.booleans()),
        "tie_embeddings": can_tie and draw(st.booleans()),
        "decoder": {
            "kind": kind,
            "dim": 2 * decoder_heads * draw(st.integers(-(-8 // decoder_heads), -(-16 // decoder_heads))),
            "num_layers": draw(st.integers(1, 2)),
            "num_heads": decoder_heads,
            "context": draw(st.integers(1, 5)),
            "num_experts": draw(st.integers(2, 4)),
            "mlp_dim": draw(st.integers(16, 32)),
        },
    }


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[str, Any]:
    """Bytes with or without a document start, or tokens of any tokenizer."""
    kind = draw(st.sampled_from(["byte256", "byte260", "tokens"]))
    return {"kind": kind, "vocab_size": draw(st.integers(8, 400))} if kind == "tokens" else {"kind": kind}


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """A spec whose batch is cut into unequal micro-batches."""
    vocabulary = draw(vocabularies())
    marked = vocabulary["kind"] != "byte256"
    model = with_table(draw, with_mixers(draw, with_document_mask(draw, draw(model_sections()), marked)))
    if marked and model["patch_size"] == 1:
        model["start"] = draw(st.sampled_from(["learned", "document_start"]))
    return spec_from_dict(
        {
            "name": "random",
            "vocabulary": vocabulary,
            "model": model,
            "artifact": draw(artifact_fields()),
            "training": {
                "steps": 1,
                "batch_symbols": (ROWS + 1) * model["seq_len"],
                "micro_batch_symbols": ROWS * model["seq_len"],
                "compile": False,
                "freeze": draw(st.sampled_from(["none", "base"])) if "lora" in model else "none",
                **draw(training_fields(vocabulary["kind"] == "tokens", model)),
            },
        }
    )


def random_symbols(spec: Spec, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Windows of symbols with document starts, int32 [rows, seq_len]."""
    x = rng.integers(0, spec.vocabulary.size, (rows, spec.model.seq_len)).astype(np.int32)
    if spec.vocabulary.document_start is not None:
        x[rng.random(x.shape) < DOCUMENT_STARTS_FRAC] = spec.vocabulary.document_start
    return x


@pytest.mark.slow
@settings(examples, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs(), seed=st.integers(0, 2**16), cut=st.floats(0.0, 1.0, exclude_max=True))
def test_random_specs_agree_and_are_causal(spec: Spec, seed: int, cut: float) -> None:
    weights = comparison_weights(spec, seed)
    rng = np.random.default_rng(seed)
    x = random_symbols(spec, ROWS + 1, rng)

    engines = {name: synthetic_engine(name, spec) for name in ENGINES}
    for engine in engines.values():
        engine.initialise(weights)
    scorers: dict[str, Scorer] = {"numpy": Oracle(spec, weights), **engines}
    # In each row another position, from the list that the audit begins with.
    positions = required_positions(spec.model.seq_len, spec.model.patch_size)
    times = np.resize(np.roll(positions, int(cut * len(positions))), len(x))
    disturbed = [x, *later_and_earlier(x, times, place_that_reaches_the_end(spec), spec.vocabulary.size)]
    # One call each: in another place of a batch some processors round a row differently.
    scored = {name: [scorer.log_probs(each) for each in disturbed] for name, scorer in scorers.items()}
    outputs = {name: found for name, (found, *_) in scored.items()}
    losses, kinks = {"numpy": oracle_loss(spec, weights, x)}, HeldKinks(spec, KINK_REL)
    gradients = {}
    for name, engine in kinks.engines(engines).items():
        engine.initialise(weights)
        losses[name], gradients[name] = engine.gradients(x)
    rounding = partial(rounding_of_logits, spec, weights, x)
    rows = [
        *logit_rows(outputs, lambda name: trace_forward(make_ops(name), spec, weights, x), rounding),
        *nats_rows({name: scorer.score(x) for name, scorer in scorers.items()}, rounding),
        *loss_rows(losses),
        *gradient_rows(
            spec,
            gradients,
            kinks=kinks,
            rounding=partial(rounding_of_gradients, engines["torch"], weights, x),
        ),
    ]
    assert [row for row in rows if not row.passed] == []

    for name, scorer in scorers.items():
        before, later, earlier = scored[name]
        assert_causal(name, before, later, earlier, times)
        if spec.model.attention.document_mask:
            assert check_isolation(scorer, make_probe(spec, x.reshape(-1), seed)).passed, name


def later_and_earlier(x: np.ndarray, times: np.ndarray, early: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """x [R, T] with every symbol of row r changed from times[r] on, and x with the symbols at `early` changed alone."""
    position = np.arange(x.shape[1])
    later = np.where(position >= times[:, None], (x + 1 + position % (vocab_size - 1)) % vocab_size, x)
    earlier = x.copy()
    earlier[:, early] = (earlier[:, early] + 1) % vocab_size
    return later, earlier


def assert_causal(name: str, before: np.ndarray, later: np.ndarray, earlier: np.ndarray, times: np.ndarray) -> None:
    """Changing row r from times[r] on may move no distribution up to and including the one at times[r]; changing an
    early symbol must reach the last distribution, or the test could not fail."""
    moved, position = np.abs(later - before), np.arange(before.shape[1])
    assert moved[position <= times[:, None]].max() <= CAUSALITY_ABS, f"{name}: a position up to {times} sees the future"
    assert np.abs(earlier - before)[:, -1].max() > CAUSALITY_ABS, f"{name}: the past has no effect"
