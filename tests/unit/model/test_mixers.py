"""Mixers with a state: each scan against its recurrence, in the model, counted, and what the spec refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.artifact.predict import predict_artifact_bytes
from shared.engine.flops import training_flops
from shared.engine.oracle import Oracle
from shared.errors import SpecError
from shared.model import parameter_counts, parameter_manifest, random_weights
from shared.model.chunks import CHUNK, chunk_size, decay_matrix, in_chunks, out_of_chunks, short_convolution
from shared.model.gated_delta import delta_scan, unit_lower_inverse
from shared.model.mamba2 import selective_scan
from shared.tolerances import CAUSALITY_ABS, ORACLE_OPERATION_REL, SCAN_REL
from tests.implementations import ENGINES, OPS, every_implementation, examples, gradients_of, normal
from tests.measured_memory import assert_as_estimated
from tests.techniques import BYTES, CHUNKS, symbols, tiny
from tests.unit.engine.test_flops import CountingOps

EXACT = OPS["numpy"]
HYBRID = 'model.mixers=["mamba2","attention","gated_delta"]'
# Not a multiple of the chunk, and with several of them.
POSITIONS = 2 * CHUNK + 11

lengths = st.integers(1, 40)
chunks = st.sampled_from([1, 2, 4, 16, 64])
seeds = st.integers(0, 2**16)


def log_decays(kind: str, seed: int, *shape: int) -> np.ndarray:
    """ln a: of medium size; nearly none; or so strong that nothing is left after a position or two."""
    scale = {"medium": 0.3, "weak": 1e-4, "strong": 60.0}[kind]
    return -np.float32(scale) * np.abs(normal(seed, *shape))


def selective_inputs(kind: str, seed: int, positions: int) -> list[np.ndarray]:
    """x, ln a, b, c of two rows, 4 heads of width 3 in 2 groups, and states of width 5."""
    return [
        normal(seed, 2, positions, 4, 3),
        log_decays(kind, seed + 1, 2, positions, 4),
        normal(seed + 2, 2, positions, 2, 5),
        normal(seed + 3, 2, positions, 2, 5),
    ]


def delta_inputs(kind: str, seed: int, positions: int) -> list[np.ndarray]:
    """q, k, v, ln a, s of two rows and 3 heads, keys of width 5 and norm 1, values of width 4."""
    k = normal(seed + 1, 2, positions, 3, 5)
    return [
        normal(seed, 2, positions, 3, 5),
        k / np.linalg.norm(k, axis=-1, keepdims=True),
        normal(seed + 2, 2, positions, 3, 4),
        log_decays(kind, seed + 3, 2, positions, 3),
        1.0 / (1.0 + np.exp(-2.0 * normal(seed + 4, 2, positions, 3))),
    ]


def selective_recurrence(x: np.ndarray, log_decay: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """One position after the other, as the definition says."""
    x, log_decay, b, c = (array.astype(float) for array in (x, log_decay, b, c))
    per_group = x.shape[2] // b.shape[2]
    y = np.empty_like(x)
    for row, head in np.ndindex(x.shape[0], x.shape[2]):
        state = np.zeros((x.shape[3], b.shape[3]))
        for t in range(x.shape[1]):
            state = np.exp(log_decay[row, t, head]) * state + np.outer(x[row, t, head], b[row, t, head // per_group])
            y[row, t, head] = state @ c[row, t, head // per_group]
    return y


def delta_recurrence(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, log_decay: np.ndarray, strength: np.ndarray
) -> np.ndarray:
    """One position after the other, as the definition says."""
    q, k, v, log_decay, strength = (array.astype(float) for array in (q, k, v, log_decay, strength))
    y = np.empty((*q.shape[:3], v.shape[3]))
    for row, head in np.ndindex(q.shape[0], q.shape[2]):
        state = np.zeros((v.shape[3], k.shape[3]))
        for t in range(q.shape[1]):
            key, s = k[row, t, head], strength[row, t, head]
            kept = state @ (np.eye(len(key)) - s * np.outer(key, key))
            state = np.exp(log_decay[row, t, head]) * kept + s * np.outer(v[row, t, head], key)
            y[row, t, head] = state @ q[row, t, head]
    return y


SCANS: dict[str, tuple[Callable, Callable, Callable]] = {
    "mamba2": (selective_scan, selective_recurrence, selective_inputs),
    "gated_delta": (delta_scan, delta_recurrence, delta_inputs),
}
every_scan = pytest.mark.parametrize("scan", list(SCANS))
decay_kinds = st.sampled_from(["medium", "weak", "strong"])


# The scans.


@every_scan
@examples
@given(positions=lengths, chunk=chunks, kind=decay_kinds, seed=seeds)
def test_a_scan_is_its_recurrence_whatever_the_chunk(scan: str, positions: int, chunk: int, kind: str, seed: int):
    chunked, recurrence, inputs = SCANS[scan]
    arrays = inputs(kind, seed, positions)
    expected = recurrence(*arrays)
    actual = chunked(EXACT, *(EXACT.asarray(array) for array in arrays), largest_chunk=chunk)
    assert np.abs(actual - expected).max() <= ORACLE_OPERATION_REL * max(1.0, np.abs(expected).max())


@every_scan
@pytest.mark.parametrize("kind", ["medium", "weak", "strong"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_scan_keeps_its_digits_in_float32(name: str, kind: str, scan: str):
    chunked, recurrence, inputs = SCANS[scan]
    arrays = inputs(kind, 3, 5 * CHUNK + 7)
    expected = recurrence(*arrays)
    ops = OPS[name]
    actual = ops.to_numpy(chunked(ops, *(ops.asarray(array) for array in arrays)))
    assert np.abs(actual - expected).max() <= SCAN_REL * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", ENGINES)
def test_keys_that_are_all_alike_lose_no_digits(name: str):
    """The worst case of the triangular system: powers of its matrix reach 1e8, its inverse never exceeds 1."""
    arrays = delta_inputs("weak", 5, 4 * CHUNK)
    arrays[1][:] = arrays[1][:, :1]
    arrays[4][:] = np.float32(0.999)
    expected = delta_recurrence(*arrays)
    ops = OPS[name]
    actual = ops.to_numpy(delta_scan(ops, *(ops.asarray(array) for array in arrays)))
    assert np.abs(actual - expected).max() <= SCAN_REL * max(1.0, np.abs(expected).max())


@every_scan
def test_gradients_of_a_scan_survive_any_decay(scan: str):
    """Finite, and the same in both engines: above the diagonal nothing is exponentiated that could overflow."""
    chunked, _, inputs = SCANS[scan]
    for kind in ("weak", "strong"):
        arrays = inputs(kind, 7, POSITIONS)
        by_torch, by_mlx = (
            gradients_of(name, lambda *values, ops=OPS[name]: ops.sum(chunked(ops, *values) ** 2), arrays)
            for name in ("torch", "mlx")
        )
        for left, right in zip(by_torch, by_mlx, strict=True):
            assert np.isfinite(left).all()
            assert np.linalg.norm(left - right) <= SCAN_REL * max(1.0, np.linalg.norm(left)), kind


@every_implementation
@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_the_inverse_of_a_triangular_matrix(name: str, size: int):
    ops, x = OPS[name], 0.5 * np.tril(normal(1, 3, size, size), -1)
    inverse = ops.to_numpy(unit_lower_inverse(ops, ops.asarray(x)))
    product = inverse @ (np.eye(size) + x)
    scale = max(1.0, float(np.abs(inverse).max()))
    assert np.abs(product - np.eye(size)).max() <= (ORACLE_OPERATION_REL if name == "numpy" else SCAN_REL) * scale


@examples
@given(positions=lengths, chunk=chunks, seed=seeds)
def test_chunks_are_a_layout_and_nothing_else(positions: int, chunk: int, seed: int):
    size = chunk_size(positions, chunk)
    assert size & (size - 1) == 0 and (size == chunk or positions <= size < 2 * positions)
    x = normal(seed, 2, positions, 3, 4)
    parts = in_chunks(EXACT, x, size)
    assert parts.shape == (2, -(-positions // size), 3, size, 4)
    assert (parts[:, 0, :, 0] == x[:, 0]).all() and (parts[:, -1, :, (positions - 1) % size] == x[:, -1]).all()
    assert (out_of_chunks(EXACT, parts, positions) == x).all()


def test_decays_between_two_positions():
    log_decay = log_decays("medium", 1, 6, 1).astype(float)
    expected = np.zeros((6, 6))
    for row, column in np.ndindex(6, 6):
        if column <= row:
            expected[row, column] = np.exp(log_decay[column + 1 : row + 1].sum())
    assert decay_matrix(EXACT, log_decay) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("positions", [1, 2, 3, 9])
def test_the_short_convolution_reads_four_positions(positions: int):
    x, taps = normal(1, 1, positions, 3).astype(float), normal(2, 4, 3).astype(float)
    y = np.zeros_like(x)
    for t in range(positions):
        for back in range(min(4, t + 1)):
            y[:, t] += taps[back] * x[:, t - back]
    assert short_convolution(EXACT, x, taps) == pytest.approx(y / (1.0 + np.exp(-y)), rel=1e-12)


# The whole model.


def test_a_mixer_needs_no_positions_and_reads_the_whole_past():
    """A first symbol reaches the last distribution through states alone, across chunks."""
    spec = tiny(
        *CHUNKS, 'model.mixers=["mamba2","gated_delta","mamba2"]', "model.patch_size=1", "model.attention.rope_dims=0"
    )
    weights, x = random_weights(spec, 1), symbols(spec, rows=1)
    # Decays of 0.99: what random weights forget within a chunk.
    weights |= {name: np.full_like(value, -4.6) for name, value in weights.items() if name.endswith("step_bias")}
    changed = x.copy()
    changed[:, 0] = (changed[:, 0] + 1) % 256
    moved = np.abs(Oracle(spec, weights).log_probs(changed) - Oracle(spec, weights).log_probs(x))
    assert moved[:, -1].max() > CAUSALITY_ABS


def test_parameters_of_a_hybrid():
    plain, hybrid = tiny(), tiny(*CHUNKS, HYBRID)
    shapes = {parameter.name: parameter.shape for parameter in parameter_manifest(hybrid)}
    assert parameter_manifest(tiny('model.mixers=["attention","attention","attention"]')) == parameter_manifest(plain)
    assert not any(name.startswith(("layers.0.attn", "layers.2.attn")) for name in shapes)
    assert shapes["layers.0.mamba2.x_proj.weight"] == (32, 32) and shapes["layers.0.mamba2.c_proj.weight"] == (12, 32)
    assert shapes["layers.0.mamba2.conv"] == (4, 32 + 12 + 12) and shapes["layers.0.mamba2.skip"] == (4,)
    assert shapes["layers.2.gated_delta.conv"] == (4, 96) and shapes["layers.2.gated_delta.log_rate"] == (4,)
    assert parameter_counts(hybrid)["total"] == sum(int(np.prod(shape)) for shape in shapes.values())
    assert predict_artifact_bytes(hybrid).expected_bytes > 0


@every_scan
@pytest.mark.parametrize("positions", [3, CHUNK, POSITIONS])
def test_the_operations_of_a_scan_are_those_it_makes(scan: str, positions: int):
    batch = [f"{part}={positions}" for part in ("model.seq_len", "training.batch_symbols", "evaluation.batch_symbols")]
    spec = tiny(*BYTES, *batch, f'model.mixers=["{scan}"]', "model.num_layers=1", "model.state_dim=5")
    model, ops = spec.model, CountingOps()
    heads, groups, width = model.num_heads, model.num_kv_heads, model.head_dim
    shapes = {
        "mamba2": [(heads, width), (heads,), (groups, model.state_dim), (groups, model.state_dim)],
        "gated_delta": [(heads, width), (heads, width), (heads, width), (heads,), (heads,)],
    }
    SCANS[scan][0](ops, *(ops.asarray(-np.abs(normal(1, 1, positions, *shape))) for shape in shapes[scan]))
    # What a single chunk would read of the state before it is made and not used, so its product has no gradients.
    size = chunk_size(positions)
    unread = 2 * size * size * width * heads if scan == "gated_delta" and size >= positions else 0
    assert training_flops(spec).attention * positions == pytest.approx(3 * ops.attended - 2 * unread, rel=1e-12)


@pytest.mark.slow
@every_scan
def test_the_peak_of_a_pass_is_as_estimated(scan: str):
    layers = f'["{scan}","{scan}","{scan}"]'
    sizes = ["model.model_dim=128", "model.head_dim=32", "model.seq_len=512", "model.state_dim=32"]
    batch = ["training.batch_symbols=512", "evaluation.batch_symbols=512"]
    spec = tiny(f"model.mixers={layers}", "model.patch_size=1", *sizes, *batch)
    for engine in ENGINES:
        assert_as_estimated(spec, engine, rows=1)


# What the spec refuses.


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (['model.mixers=["mamba2"]'], "model.mixers = ['mamba2']: must be empty or one mixer for each of the 3 layers"),
        (['model.mixers=["mamba","attention","attention"]'], "must be 'attention', 'mamba2' or 'gated_delta'"),
        (
            [HYBRID, "vocabulary.kind=byte260", "model.attention.document_mask=true"],
            "model.attention.document_mask = True: must be false, as the state of model.mixers crosses documents",
        ),
        ([HYBRID, "model.attention.output_gate=full"], "model.attention.output_gate = 'full': must be 'none'"),
        ([HYBRID, "model.attention.xsa_layers=1"], "model.attention.xsa_layers = 1: must be at most 0, as layer 2 of"),
        (
            [HYBRID, "model.attention.value_embed_layers=1", "model.attention.value_embed_dim=4"],
            "model.attention.value_embed_layers = 1: must be at most 0, as layer 2 of model.mixers is no attention",
        ),
        (
            ['model.mixers=["mamba2","attention","attention"]', "model.attention.value_residual=true"],
            "model.attention.value_residual = True: must be false, unless the first layer of model.mixers and a later",
        ),
        (
            ['model.mixers=["mamba2","mamba2","gated_delta"]', "model.attention.window=4"],
            "model.attention.window = 4: must be 0, as model.mixers has no attention",
        ),
    ],
)
def test_combinations_that_make_no_sense_are_one_clear_line(overrides: list[str], expected: str):
    with pytest.raises(SpecError) as caught:
        tiny(*overrides)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_add_ons_go_with_attention_at_the_end():
    spec = tiny('model.mixers=["attention","mamba2","attention"]', "model.attention.value_residual=true")
    assert spec.model.attention.value_residual
    assert tiny('model.mixers=["mamba2","mamba2","attention"]', "model.attention.xsa_layers=1").model.num_layers == 3
