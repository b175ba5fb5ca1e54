"""The rule of row_max: exact small cases, bounds, and that packing and the three Ops give the same codes and scales."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.artifact.budget import entropy_bits
from shared.artifact.codec import compress_blocks
from shared.quantisers import QUANTISERS, ClipSearch, LowRank, RowMax, SdClip, Ternary, quantiser, quantiser_of
from shared.spec import ArtifactSpec, QuantiserSpec
from shared.spec.artifact import Method
from shared.tolerances import BROTLI_OVER_ENTROPY_FRAC, GAUSSIAN_CODE_BITS_ABS, HALF_STEP_REL
from tests.implementations import OPS, every_implementation, normal, seeds

BITS = [4, 5, 6, 7, 8]
# The largest weight that an int6 float16 scale can hold is 31 * 65504.
WEIGHTS = st.floats(-2e6, 2e6, width=32, allow_subnormal=True)
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=WEIGHTS)


def rows_of_all_sizes(seed: int, rows: int, columns: int) -> np.ndarray:
    """From 1e-8 to 1e3: of the small ones float16 keeps few digits of the scale, or none. Each seventh is zero."""
    sizes = np.random.default_rng(seed).uniform(-8.0, 3.0, (rows, 1))
    weights = (normal(seed, rows, columns) * 10.0**sizes).astype(np.float32)
    weights[::7] = 0.0
    return weights


def assert_training_sees_the_artifact(name: str, weights: np.ndarray, coded: RowMax) -> None:
    """What an implementation makes of weights, their `rounding_error` and them `in_steps`, is what is stored."""
    ops, parts = OPS[name], coded.encode(weights)
    rows = ops.asarray(weights)
    found = {side: ops.to_numpy(getattr(coded, side)(ops, rows)) for side in ("rounding_error", "in_steps")}
    rounded = (weights + found["rounding_error"]).astype(np.float32)
    np.testing.assert_array_equal(rounded, coded.decode(weights.shape, parts))
    scales = parts["scales"].astype(np.float32)[:, None]
    steps = weights / np.where(scales > 0, scales, np.float32(1))
    np.testing.assert_array_equal(found["in_steps"].astype(np.float32), steps)
    limit = coded.code_limit
    np.testing.assert_array_equal(np.clip(np.rint(steps), -limit, limit), parts["codes"])


def test_codes_and_scales_of_a_row_worked_by_hand():
    weights = np.array([[31.0, -31.0, 15.5, 16.5, 0.4], [0, 0, 0, 0, 0]], np.float32)
    parts = RowMax(6).encode(weights)
    assert parts["scales"].tolist() == [1.0, 0.0]
    assert parts["codes"].tolist() == [[31, -31, 16, 16, 0], [0, 0, 0, 0, 0]]  # halves go to even
    assert RowMax(6).decode((2, 5), parts).tolist() == [[31, -31, 16, 16, 0], [0, 0, 0, 0, 0]]
    assert RowMax(8).encode(np.array([[-127.0, 64.0]], np.float32))["codes"].tolist() == [[-127, 64]]


@every_implementation
@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=40)
@given(seed=seeds, rows=st.integers(1, 30), columns=st.integers(1, 40))
def test_training_rounds_as_the_artifact_does(name: str, bits: int, seed: int, rows: int, columns: int):
    assert_training_sees_the_artifact(name, rows_of_all_sizes(seed, rows, columns), RowMax(bits))


def rows_on_borders(bits: int) -> np.ndarray:
    """Scales half way between two of float16, weights half way between two codes, and their neighbours in float32."""
    limit = 2 ** (bits - 1) - 1
    rng = np.random.default_rng(bits)
    # float16 has 11 bits: these have a twelfth.
    ends = np.float32(np.ldexp(rng.integers(1024, 2048, 60) + 0.5, rng.integers(-24, 4, 60)) * limit)
    ends = np.concatenate([ends, np.nextafter(ends, np.float32(0)), np.nextafter(ends, np.float32(np.inf))])
    scales = (ends / np.float32(limit)).astype(np.float16).astype(np.float32)
    halves = np.float32(np.arange(-limit, limit) + 0.5) * scales[:, None]
    sides = [np.nextafter(halves, np.float32(side)) for side in (-np.inf, np.inf)]
    return np.concatenate([ends[:, None], halves, *sides], axis=1)


@every_implementation
@pytest.mark.parametrize("bits", BITS)
def test_borders_fall_to_the_same_side_everywhere(name: str, bits: int):
    assert_training_sees_the_artifact(name, rows_on_borders(bits), RowMax(bits))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["mlx", "torch"])
def test_training_rounds_as_the_artifact_does_when_compiled(name: str):
    """Torch takes a conversion to float16 and back for nothing: compiled, codes were once not those of the artifact."""
    import mlx.core as mx

    from cuda_train.compiling import compiled

    ops, coded, weights = OPS[name], RowMax(6), rows_of_all_sizes(4, 300, 40)

    def both(rows: Any) -> Any:
        return coded.rounding_error(ops, rows), coded.in_steps(ops, rows)

    error, steps = (mx.compile(both) if name == "mlx" else compiled(both, "a surrogate"))(ops.asarray(weights))
    parts = coded.encode(weights)
    difference = weights + ops.to_numpy(error) - coded.decode(weights.shape, parts)
    # A compiler may fuse a product and a sum, which rounds once less.
    assert (np.abs(difference) <= 1e-7 * np.abs(weights).max(axis=1, keepdims=True)).all()
    np.testing.assert_array_equal(np.clip(np.rint(ops.to_numpy(steps)), -31, 31), parts["codes"])


def of_one_magnitude(seed: int, exponent: int) -> np.ndarray:
    weights = np.ldexp(np.random.default_rng(seed).uniform(-1, 1, (4, 13)).astype(np.float32), exponent)
    weights[2] = 0
    return weights


@given(weights=MATRICES | st.builds(of_one_magnitude, seeds, st.integers(-149, 18)), bits=st.sampled_from(BITS))
@settings(max_examples=300)
def test_error_is_at_most_half_a_step_at_every_magnitude_down_to_denormals(weights: np.ndarray, bits: int):
    weights, coded = weights if bits >= 6 else weights / np.float32(5), RowMax(bits)
    parts = coded.encode(weights)
    assert coded.is_valid(parts) and np.abs(parts["codes"].astype(int)).max(initial=0) <= 2 ** (bits - 1) - 1
    unpacked = coded.decode(weights.shape, parts)
    assert unpacked.dtype == np.float32 and unpacked.shape == weights.shape
    error = np.abs(weights.astype(np.float64) - unpacked).reshape(-1, weights.shape[-1])
    half_step = parts["scales"].astype(np.float64)[:, None] / 2
    assert (error <= half_step * (1 + HALF_STEP_REL)).all(), (error - half_step).max()


@pytest.mark.parametrize("bits", BITS)
def test_parts_are_what_encode_makes(bits: int):
    parts = RowMax(bits).encode(normal(1, 3, 4, 5))
    for planned in RowMax(bits).parts((3, 4, 5)):
        assert parts[planned.name].shape == planned.shape and parts[planned.name].dtype == np.dtype(planned.dtype)
    assert len(parts) == len(RowMax(bits).parts((3, 4, 5)))


def test_gaussian_int6_codes_cost_what_their_entropy_says():
    codes = RowMax(6).encode(normal(0, 256, 1536))["codes"]
    entropy = entropy_bits(codes)
    stored = 8 * sum(map(len, compress_blocks(codes.tobytes(), quality=11, window=24))) / codes.size
    assert 5.1 < entropy < 5.25
    assert entropy < stored < entropy * (1 + BROTLI_OVER_ENTROPY_FRAC)


@pytest.mark.parametrize("row_length", [16, 128, 768])
@pytest.mark.parametrize("bits", [6, 8])
def test_the_gaussian_code_agrees_with_quantised_gaussian_rows(row_length: int, bits: int):
    rows = np.random.default_rng(row_length).standard_normal((1_200_000 // row_length, row_length))
    codes = RowMax(bits).encode(rows.astype(np.float32))["codes"]
    expected = pytest.approx(entropy_bits(codes), abs=GAUSSIAN_CODE_BITS_ABS)
    assert RowMax(bits).gaussian_code_bits(row_length) == expected


def test_every_method_of_a_spec_has_a_quantiser():
    assert set(get_args(Method)) == set(QUANTISERS)
    for name in QUANTISERS:
        settings_of = QuantiserSpec(method=name, bits=8)
        assert (quantiser(settings_of).method, quantiser(settings_of).bits) == (name, 2 if name == "ternary" else 8)
        assert name in ("ternary", "uniform") or quantiser(settings_of, 5).bits == 5
        for rounding in ("nearest", "gptq"):
            for hessian_clip in (0.0, 0.175):
                each = QuantiserSpec(method=name, rounding=rounding, hessian_clip=hessian_clip)
                assert quantiser(each).has_surrogate == each.has_surrogate == quantiser_of(each, (9, 9)).has_surrogate
                assert quantiser(each).stored_settings.get("rounding", "nearest") == rounding
                # A reader makes it again from what is stored of it.
                again = QuantiserSpec.model_validate(dict(quantiser(each).stored_settings))
                assert quantiser(again).stored_settings == quantiser(each).stored_settings


def test_corrections_are_for_matrices_as_wide_as_their_rank():
    corrected = QuantiserSpec(lqer_rank=4)
    assert quantiser_of(corrected, (4, 9)) == LowRank(RowMax(8), 4)
    assert [quantiser_of(corrected, shape) for shape in [(2, 9, 9), (3, 9), (9, 3)]] == [RowMax(8)] * 3
    assert quantiser_of(corrected, (4, 9)).stored_settings == {"method": "row_max", "bits": 8, "lqer_rank": 4}


def test_every_method_has_its_settings():
    values = {"bits": 7, "rounding": "gptq", "clip_sd": 15.0, "hessian_clip": 0.2, "group": 64}
    made = [
        quantiser(QuantiserSpec(method=name, **values)) for name in ("row_max", "sd_clip", "clip_search", "ternary")
    ]
    assert made == [RowMax(7, "gptq"), SdClip(7, "gptq", 15.0, 0.2), ClipSearch(7, "gptq"), Ternary(64, "gptq")]


def test_the_classes_of_a_spec_choose_their_own_bits():
    spec = ArtifactSpec()
    assert [quantiser(section).bits for section in (spec.matrix, spec.embed, spec.head)] == [6, 8, 8]
