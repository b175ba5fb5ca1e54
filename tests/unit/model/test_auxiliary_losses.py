"""Losses and parameters that exist in training only: definitions, gradients, and that nothing else sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.artifact import pack_bytes, unpack_bytes
from shared.artifact.code_lengths import range_bits
from shared.artifact.container import quantise_model
from shared.artifact.predict import predict_artifact_bytes
from shared.artifact.range_codec import encode
from shared.cli.spec import spec_text, training_only_count
from shared.engine.activations import activation_bytes
from shared.engine.flops import newton_schulz_flops, training_flops
from shared.engine.package import create_engine
from shared.engine.state import split_state
from shared.errors import ArtifactError, RunError, SpecError
from shared.model import (
    initial_weights,
    model_weights,
    parameter_counts,
    parameter_manifest,
    random_weights,
    training_parameters,
)
from shared.model.auxiliary import distance_from_normal, unit_directions
from shared.model.code_entropy import code_entropy_bits, coded_matrices
from shared.model.embedding import embed_patches
from shared.model.forward import trunk_outputs
from shared.model.stages import (
    CODE_ENTROPY,
    CODE_ENTROPY_ROW,
    DIRECTIONS_STEP,
    MULTI_SYMBOL,
    StepNumbers,
    run_numbers,
    warm_up_numbers,
)
from shared.ops import NumpyOps
from shared.optim import state_bytes, step_hyperparameters
from shared.parity.gradient_checks import oracle_loss, oracle_objective
from shared.preflight.workload import resized
from shared.quantisers import RowMax
from shared.scoring.random_bytes import random_bytes_spec
from shared.spec import Spec, spec_from_dict, spec_id, spec_to_dict, with_overrides
from shared.spec.reduced import reduced_spec
from shared.tolerances import LOGITS_ABS, PARAMETERS_REL, QUADRATURE_REL
from tests.implementations import OPS, assert_close, every_implementation, gradients_of, normal, run
from tests.techniques import (
    BYTES,
    EVERY_TERM,
    TERMS,
    assert_gradients_agree,
    every_engine,
    oracle_params,
    started,
    symbols,
    tiny,
)

SHORT_BYTES = [*BYTES, "model.seq_len=16", "training.batch_symbols=64"]


@every_implementation
def test_the_new_operations(name: str):
    ops, rows, positive = OPS[name], normal(1, 5, 9), np.abs(normal(2, 4, 6)) + 0.01
    assert_close(name, run(name, lambda ops: ops.log(ops.asarray(positive))), np.log(positive.astype(np.float64)))
    np.testing.assert_array_equal(ops.to_numpy(ops.largest(ops.asarray(rows))), np.abs(rows).max(axis=1, keepdims=True))
    halves = np.array([-2.5, -1.5, -0.5, 0.49999997, 0.5, 1.5, 8388609.0], np.float32)
    np.testing.assert_array_equal(ops.to_numpy(ops.round(ops.asarray(halves))), np.rint(halves))
    np.testing.assert_array_equal(ops.to_numpy(ops.float16(ops.asarray(positive))), positive.astype(np.float16))
    # What float32 cannot tell from a border is on it, in float64 too.
    beyond = ops.asarray(np.array([1.0, 2049.0]) * (1 + 1e-12) * np.array([0.5, 1.0]))
    assert ops.to_numpy(ops.round(beyond))[0] == 0.0 and ops.to_numpy(ops.float16(beyond))[1] == 2048.0
    np.testing.assert_array_equal(ops.to_numpy(ops.stop_gradient(ops.asarray(rows))), rows)
    index = ops.cast_like(ops.asarray(np.array(3.0, np.float32)), ops.asarray(np.arange(4, dtype=np.int32)))
    assert ops.to_numpy(index).dtype.kind == "i" and int(index) == 3


@every_engine
def test_what_is_constant_to_derivatives(name: str):
    def value(x: Any, ops: Any = OPS[name]) -> Any:
        return ops.sum(x * ops.stop_gradient(x) + RowMax(4).in_steps(ops, x) + RowMax(4).rounding_error(ops, x))

    rows = normal(3, 4, 5)
    scales = (np.abs(rows).max(axis=1, keepdims=True) / np.float32(7)).astype(np.float16)
    expected = rows + 1 / scales.astype(np.float32)
    np.testing.assert_allclose(gradients_of(name, value, [rows])[0], expected, rtol=1e-6)


def naive_terms(spec: Spec) -> dict[str, float]:
    """Each loss of the section, weighted, one position at a time."""
    ops, params, x = NumpyOps(), oracle_params(spec), symbols(spec)
    loss, size, softcap = spec.training.loss, spec.model.patch_size, spec.model.logit_softcap
    h, inputs = trunk_outputs(ops, spec, params, x), embed_patches(ops, spec, params, x)
    rows, patches = h.shape[:2]
    terms = dict.fromkeys(TERMS, 0.0)
    for k, weight in enumerate(loss.multi_symbol.weights, 1):
        nats = []
        for b, i in np.ndindex(rows, patches - k):
            logits = (params[f"auxiliary.multi_symbol.{k}.weight"] @ h[b, i]).reshape(size, -1)
            capped = softcap * np.tanh(logits / softcap)
            for place in range(size):
                target = x[b, (i + k) * size + place]
                nats.append(np.log(np.exp(capped[place]).sum()) - capped[place, target])
        terms["multi_symbol"] += weight * float(np.mean(nats))
    if loss.embed_prediction.weight:
        distances = []
        for k in range(1, loss.embed_prediction.symbols + 1):
            for b, i in np.ndindex(rows, patches):
                if i * size + k - 1 < x.shape[1]:
                    z = params[f"auxiliary.embed_prediction.{k}.weight"] @ h[b, i]
                    distances.append(np.sum((z - params["embed.weight"][x[b, i * size + k - 1]]) ** 2))
        terms["embed_prediction"] = loss.embed_prediction.weight * float(np.mean(distances))
    if loss.chunk_prediction.weight:
        terms["chunk_prediction"] = loss.chunk_prediction.weight * naive_chunks(spec, params, h, inputs)
    if loss.code_entropy.weight:
        terms["code_entropy"] = loss.code_entropy.weight * naive_code_bits(spec, params)
    return terms


def naive_chunks(spec: Spec, params: dict[str, np.ndarray], h: np.ndarray, inputs: np.ndarray) -> float:
    chunks = spec.training.loss.chunk_prediction
    size, count = chunks.chunk_patches, (h.shape[1] - 1) // chunks.chunk_patches

    def two_layers(side: str, value: np.ndarray) -> np.ndarray:
        hidden = params[f"auxiliary.chunk_prediction.{side}_in.weight"] @ value
        hidden = hidden / np.sqrt(np.mean(hidden**2) + spec.model.norm_eps)
        return params[f"auxiliary.chunk_prediction.{side}_out.weight"] @ (hidden / (1.0 + np.exp(-hidden)))

    errors, statistics = [], []
    directions = unit_directions(NumpyOps(), np.ones((chunks.latent_dim, 2)), chunks.directions, np.array(0))
    for b in range(len(h)):
        latents = np.array(
            [two_layers("latent", inputs[b, j * size + 1 : (j + 1) * size + 1].mean(axis=0)) for j in range(count)]
        )
        errors += [two_layers("prediction", h[b, j * size]) - latents[j] for j in range(count)]
        statistics += [by_quadrature(latents @ direction) for direction in directions]
    return float(np.mean(np.square(errors)) + chunks.regulariser_weight * np.mean(statistics))


def by_quadrature(values: np.ndarray) -> float:
    """Integral of |mean exp(i t y) - exp(-t^2 / 2)|^2 against a normal density of t."""
    t = np.linspace(-12.0, 12.0, 4001)
    difference = np.exp(1j * np.outer(t, values)).mean(axis=1) - np.exp(-(t**2) / 2)
    density = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
    return float(np.sum(np.abs(difference) ** 2 * density) * (t[1] - t[0]))


def naive_code_bits(spec: Spec, params: dict[str, np.ndarray]) -> float:
    """At step 0, so from row 0 on, one code at a time."""
    entropy, limit = spec.training.loss.code_entropy, 2 ** (spec.artifact.matrix.bits - 1) - 1
    in_bins, total, count = np.zeros((112, 2 * limit + 1)), 0.0, 0
    for parameter in parameter_manifest(spec):
        if parameter.quantisation == "matrix":
            matrix = params[parameter.name]
            scales = np.float16(np.float32(np.abs(matrix).max(axis=1)) / np.float32(limit)).astype(np.float64)
            sizes = np.abs(np.rint(matrix / scales[:, None]))
            looked_at = [row % len(matrix) for row in range(0, len(matrix), entropy.row_stride)]
            histogram = np.zeros(2 * limit + 1)
            for row in looked_at:
                for column, weight in enumerate(matrix[row] / scales[row]):
                    shares = np.exp(-((weight - np.arange(-limit, limit + 1)) ** 2) / entropy.temperature)
                    shares *= len(matrix) / len(looked_at) / shares.sum()
                    histogram += shares
                    at = expected_bin(sizes[row].sum(), sizes[:, column].sum(), sizes.sum())
                    in_bins[int(at)] += (1 - at % 1) * shares
                    in_bins[int(at) + 1] += at % 1 * shares
            p = histogram / histogram.sum()
            total -= parameter.count * float(np.sum(p * np.log2((p + 1e-9) / (1 + 1e-9 * len(p)))))
            count += parameter.count
    if spec.artifact.codec == "range":
        p = (in_bins + 1 / 2048) / (in_bins + 1 / 2048).sum(axis=1, keepdims=True)
        total = -float(np.sum(in_bins * np.log2(p)))
    return total / count


def expected_bin(row: float, column: float, all_sizes: float) -> float:
    return float(np.clip(56 + 8 * np.log2((4 * row + 1) * (4 * column + 1) / (16 * all_sizes + 4)), 0, 110.999))


@pytest.mark.parametrize("shape", ["patches of 4", "bytes"])
def test_the_definitions(shape: str):
    """Bytes with the range coder, patches with brotli."""
    more = [*SHORT_BYTES, "artifact.codec=range"] if shape == "bytes" else []
    spec = tiny(*more, *EVERY_TERM)
    weights, x = random_weights(spec, 3), symbols(spec)
    terms = naive_terms(spec)
    for term, overrides in TERMS.items():
        only = tiny(*more, *overrides)
        added = oracle_objective(only, weights, x) - oracle_loss(only, weights, x)
        assert added == pytest.approx(terms[term], rel=QUADRATURE_REL), term
        assert abs(terms[term]) > 1e-3
    added = oracle_objective(spec, weights, x) - oracle_loss(spec, weights, x)
    assert added == pytest.approx(sum(terms.values()), rel=QUADRATURE_REL)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["row_max", "ternary", "uniform"])
def test_code_entropy_is_what_the_coder_takes(method: str):
    """Hardened and of all rows it is the estimate that fills a budget, and both are what the range coder takes, less
    its offsets and what it has to learn. Rows and columns of these weights differ in size, which order 0 does not see.
    """
    settings = [f"artifact.matrix.method={method}", "artifact.matrix.step=0.4", "model.model_dim=64"]
    hard = ["weight=1.0", "temperature=0.001", "row_stride=1", "start_frac=0.0"]
    spec = tiny(*settings, *(f"training.loss.code_entropy.{each}" for each in hard), "artifact.codec=range")
    rng, weights = np.random.default_rng(1), random_weights(spec, 3)
    for each in coded_matrices(spec):
        shape = each.shape
        scale = np.exp2(rng.normal(0, 0.4, (shape[0], 1)) + rng.normal(0, 0.8, shape[1]))
        weights[each.name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    ops, x = NumpyOps(), np.zeros((1, 4), np.int32)
    params = {name: ops.asarray(value) for name, value in weights.items()}
    found = float(code_entropy_bits(ops, spec, params, x))
    tensors = quantise_model(spec, weights)
    codes = [tensors[each.name].parts["codes"] for each in coded_matrices(spec)]
    count = sum(each.size for each in codes)
    estimate = range_bits(codes, [0] * len(codes)) / count
    stored = 8 * len(encode(codes, [0] * len(codes))) / count
    order_0 = float(code_entropy_bits(ops, with_overrides(spec, ["artifact.codec=brotli"]), params, x))
    assert found == pytest.approx(estimate, rel=0.011)
    assert found == pytest.approx(stored, rel=0.06) and found < 0.97 * order_0


def test_the_regulariser_knows_a_normal_sample_from_a_collapse():
    ops, rng = NumpyOps(), np.random.default_rng(0)
    directions = unit_directions(ops, np.ones((6, 2)), 32, np.array(5))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=1e-12)
    assert not np.allclose(directions, unit_directions(ops, np.ones((6, 2)), 32, np.array(6)))
    samples = {
        "normal": rng.standard_normal((1, 400, 6)),
        "wide": 3.0 * rng.standard_normal((1, 400, 6)),
        "collapsed": np.zeros((1, 400, 6)),
    }
    found = {name: float(distance_from_normal(ops, values, directions)) for name, values in samples.items()}
    assert 0.0 < found["normal"] < 0.01 < found["wide"] and found["collapsed"] > 0.15


@every_engine
def test_with_adapters_the_reported_loss_is_that_of_the_scored_function(name: str):
    """Of the head too, which is not part of the trunk outputs that the auxiliary losses share."""
    adapters = ["model.lora.rank=2", 'model.lora.targets=["q","head"]', "model.tie_embeddings=false"]
    spec = tiny(*SHORT_BYTES, *adapters, "model.embed_rank=8", *EVERY_TERM)
    engine, x = started(name, spec), symbols(spec)
    loss, gradients = engine.gradients(x)
    assert loss == pytest.approx(float(engine.score(x).mean()), abs=LOGITS_ABS)
    assert loss == pytest.approx(oracle_loss(spec, random_weights(spec, 3), x), abs=LOGITS_ABS)
    assert_gradients_agree(spec, x, {name: gradients})


def test_the_numbers_of_a_step():
    spec = tiny(
        *EVERY_TERM, "training.loss.multi_symbol.decay_end_frac=0.5", "training.loss.code_entropy.start_frac=0.25"
    )
    expected = {MULTI_SYMBOL: 0.5, DIRECTIONS_STEP: 16.0, CODE_ENTROPY: 1.0, CODE_ENTROPY_ROW: 1.0}
    assert run_numbers(spec, 16, 0.25) == expected
    assert run_numbers(spec, 0, 0.0)[CODE_ENTROPY] == 0.0 and run_numbers(spec, 50, 0.8)[MULTI_SYMBOL] == 0.0
    assert warm_up_numbers(spec, ("a",)) == [StepNumbers(0, dict.fromkeys(expected, 1.0), {"a": 1.0})]
    assert run_numbers(tiny(), 16, 0.25) == {}


@every_engine
def test_what_changes_during_a_run_does(name: str):
    """Against the oracle with the same numbers, and off means as if it were not there."""
    spec = tiny(
        *EVERY_TERM, "training.loss.multi_symbol.decay_end_frac=0.5", "training.loss.code_entropy.start_frac=0.25"
    )
    engine, x, key = started(name, spec), symbols(spec), "layers.1.mlp.up_proj.weight"
    found = {}
    for step in (0, 15, 16, 45):
        found[step] = engine.gradients(x, step_hyperparameters(spec, step, step / 60))[1]
    heads = {step: np.abs(grads["auxiliary.multi_symbol.1.weight"]).max() for step, grads in found.items()}
    assert heads[0] > heads[15] > heads[16] > heads[45] == 0.0
    only = tiny(*TERMS["code_entropy"], "training.loss.code_entropy.start_frac=0.25")
    grads = [started(name, only).gradients(x, step_hyperparameters(only, s, s / 60))[1][key] for s in (0, 15, 16, 18)]
    np.testing.assert_array_equal(grads[0], started(name, tiny()).gradients(x)[1][key])
    # Rows 0, 3, 6, .. at steps 15 and 18, rows 1, 4, 7, .. at step 16.
    pull = [np.abs(value - grads[0]).max(axis=1) for value in grads]
    assert np.array_equal(grads[1], grads[3]) and not np.array_equal(grads[1], grads[2])
    assert (pull[1][0::3] > 0).all() and (pull[2][1::3] > 0).all() and pull[2][0::3].max() < pull[1][0::3].max()


def test_the_model_is_as_without():
    """Counts, initial values, identity, size and speed of what is scored."""
    spec, plain = tiny(*EVERY_TERM), tiny()
    assert parameter_manifest(spec) == parameter_manifest(plain) == training_parameters(plain)
    assert parameter_counts(spec) == parameter_counts(plain) and spec_id(spec) == spec_id(plain)
    ours = initial_weights(spec)
    for key, value in initial_weights(plain).items():
        np.testing.assert_array_equal(ours[key], value)
    only = training_only_count(spec)
    assert only == 2 * 1024 * 32 + 5 * 32 * 32 + 2 * (16 * 32 + 8 * 16)
    assert f"{only:,} more in training only" in spec_text(spec) and " more in" not in spec_text(plain)
    matrices = 5 * 32 * 32 + 2 * (16 * 32 + 8 * 16)
    # Weights and their average; a Muon matrix has one number more in the optimizer, a head two.
    assert state_bytes(spec) - state_bytes(plain) == 4 * (3 * matrices + 4 * 2 * 1024 * 32)
    # Of 16 patches 15 and 14 have one that far ahead, four symbols of the next five are in the same patch, and behind
    # the first patch there are 5 chunks of 3, whose latents four directions look along.
    heads, embeds = (15 + 14) * 1024 * 32, (4 * 16 + 15) * 32 * 32
    chunks, along = 5 * 2 * (16 * 32 + 8 * 16), 5 * 4 * 8
    # Chunks are made of the trunk's inputs, which are embedded for them once more.
    inputs = 16 * 4 * 32 * 32
    # Directions are constants, so the last product has one gradient and not two.
    expected = (6 * (heads + embeds + chunks + inputs) + 4 * along) / 64
    assert training_flops(spec).matrices - training_flops(plain).matrices == pytest.approx(expected)
    assert newton_schulz_flops(spec) > newton_schulz_flops(plain)
    assert activation_bytes(spec, "torch", 1).expected > activation_bytes(plain, "torch", 1).expected
    difference = predict_artifact_bytes(spec).expected_bytes - predict_artifact_bytes(plain).expected_bytes
    assert abs(difference) < 100  # the header holds the spec


@every_engine
def test_artifacts_and_scores_do_not_know_them(name: str):
    spec, plain = tiny(*EVERY_TERM), tiny()
    engine, x = started(name, spec), symbols(spec)
    exported, before = engine.export_weights("trained"), engine.score(x)
    assert set(exported) == {each.name for each in training_parameters(spec)}
    packed = unpack_bytes(pack_bytes(spec, exported))
    without = unpack_bytes(pack_bytes(plain, started(name, plain).export_weights("trained")))
    assert packed.header["tensors"] == without.header["tensors"]
    assert packed.header["sections"] == without.header["sections"]
    engine.initialise(packed.weights)
    np.testing.assert_array_equal(engine.score(x), started(name, plain, packed.weights).score(x))
    np.testing.assert_array_equal(before, started(name, plain).score(x))
    # From an artifact they start anew.
    key = "auxiliary.chunk_prediction.latent_in.weight"
    np.testing.assert_array_equal(engine.export_weights("trained")[key], initial_weights(spec)[key])
    with pytest.raises(ArtifactError, match=r"auxiliary\.multi_symbol"):
        pack_bytes(plain, exported)


def test_a_run_resumes_on_the_other_engine(tmp_path: Path):
    spec = tiny(*EVERY_TERM, "training.ema_decay=0.5")
    engine = started("mlx", spec, initial_weights(spec))
    other = create_engine("torch", spec)
    for step in range(4):
        numbers = step_hyperparameters(spec, step, step / 60)
        engine.train_step(symbols(spec, seed=step), numbers)()
        if step >= 2:
            other.train_step(symbols(spec, seed=step), numbers)()
        if step == 1:
            other.load_state(engine.save_state())
    expected, found = engine.export_weights("averaged"), other.export_weights("averaged")
    for parameter in training_parameters(spec):
        difference = np.linalg.norm(found[parameter.name] - expected[parameter.name])
        assert difference <= PARAMETERS_REL * np.linalg.norm(expected[parameter.name])
    with pytest.raises(RunError, match="unknown in the checkpoint: it belongs to another spec"):
        split_state(tiny("training.ema_decay=0.5"), engine.save_state())


def test_short_runs_and_windows_still_hold_them():
    spec = tiny(
        "training.loss.multi_symbol.weights=[0.1,0.1,0.1,0.1,0.1,0.1]",
        "training.loss.embed_prediction.weight=0.1",
        "training.loss.embed_prediction.symbols=12",
        "training.loss.chunk_prediction.weight=0.1",
        "training.loss.code_entropy.weight=0.1",
        "training.loss.code_entropy.start_frac=0.8",
    )
    small = resized(spec, 2 * spec.model.patch_size, 1).training.loss
    assert len(small.multi_symbol.weights) == 1 and small.chunk_prediction.chunk_patches == 1
    assert small.embed_prediction.symbols == 8
    assert resized(spec, 64, 1).training.loss.code_entropy.start_frac == 0.8
    short, notes = reduced_spec(spec, 4)
    assert short.training.loss.code_entropy.start_frac == 0.75 and any("code_entropy" in note for note in notes)
    assert random_bytes_spec(spec, 200).training.loss.multi_symbol == spec.training.loss.multi_symbol


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["training.loss.multi_symbol.weights=[0.0]"], "multi_symbol.weights"),
        (
            [*SHORT_BYTES, "model.seq_len=2", f"training.loss.multi_symbol.weights={[0.1] * 2}"],
            "multi_symbol.weights = ",
        ),
        (
            [*SHORT_BYTES, "model.seq_len=2", "training.loss.embed_prediction.weight=1.0"],
            "embed_prediction.symbols = 4",
        ),
        (
            ["training.loss.chunk_prediction.weight=1.0", "training.loss.chunk_prediction.chunk_patches=16"],
            "chunk_prediction.chunk_patches = 16",
        ),
        (
            [*TERMS["code_entropy"], "training.loss.code_entropy.start_frac=0.99", "training.steps=60"],
            "code_entropy.start_frac = 0.99",
        ),
        (["training.loss.code_entropy.temperature=0.0"], "code_entropy.temperature"),
    ],
)
def test_what_is_refused(overrides: list[str], field: str):
    with pytest.raises(SpecError, match=field):
        tiny(*overrides)
    assert spec_from_dict(spec_to_dict(tiny(*EVERY_TERM))) == tiny(*EVERY_TERM)
    assert model_weights(tiny(), {"any": 1}) == {"any": 1}
