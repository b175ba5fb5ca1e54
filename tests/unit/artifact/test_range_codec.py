"""The range coder: every matrix comes back, near its entropy, and no stream does anything but decode or be refused."""

from __future__ import annotations

import hashlib
import random
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.artifact.budget import entropy_bits
from shared.artifact.code_lengths import range_bits
from shared.artifact.range_codec import CodedShape, decode, encode, num_lanes
from shared.artifact.range_model import prior_counts
from shared.artifact.row_references import add_references
from shared.errors import ArtifactError
from shared.quantisers.trellis_states import MAX_TRELLIS_COLUMNS, TRELLISES
from tests import ROOT

GOLDEN = ROOT / "tests" / "golden" / "2026-11-26" / "range.bin"

Codes = NDArray[np.int8]


def weights_like(seed: int, rows: int, columns: int, magnitude: float) -> Codes:
    """Gaussian codes whose rows and columns differ in magnitude by half an octave."""
    rng = np.random.default_rng(seed)
    scale = np.exp2(rng.normal(0, 0.5, (rows, 1)) + rng.normal(0, 0.5, columns))
    return np.clip(np.round(rng.standard_normal((rows, columns)) * scale * magnitude), -127, 127).astype(np.int8)


def shapes_of(matrices: list[Codes], states: list[int]) -> list[CodedShape]:
    return [CodedShape(*matrix.shape, count) for matrix, count in zip(matrices, states, strict=True)]


def assert_comes_back(matrices: list[Codes], states: list[int]) -> bytes:
    stream = encode(matrices, states)
    decoded = decode(stream, shapes_of(matrices, states))
    assert len(decoded) == len(matrices)
    for matrix, found in zip(matrices, decoded, strict=True):
        np.testing.assert_array_equal(found, matrix)
        assert found.dtype == np.int8
    return stream


@st.composite
def matrices(draw: st.DrawFn) -> Codes:
    rows, columns = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["weights", "uniform", "zeros", "extreme", "sparse", "repeated"]))
    if kind == "weights":
        return weights_like(draw(st.integers(0, 99)), rows, columns, draw(st.sampled_from([0.05, 0.5, 3.0, 60.0])))
    if kind == "uniform":
        return rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    if kind == "extreme":
        return rng.choice(np.array([-128, 127], np.int8), (rows, columns))
    if kind == "repeated":
        first = rng.integers(-128, 128, columns)
        return (first + rng.integers(-1, 2, (rows, columns))).astype(np.int8)
    codes = np.zeros((rows, columns), np.int8)
    if kind == "sparse":
        codes[rng.integers(rows), rng.integers(columns)] = rng.integers(-128, 128)
    return codes


@settings(max_examples=50)
@given(st.lists(st.tuples(matrices(), st.sampled_from([0, 0, 4, 8])), max_size=4))
def test_every_matrix_comes_back(drawn: list[tuple[Codes, int]]) -> None:
    assert_comes_back([matrix for matrix, _ in drawn], [states for _, states in drawn])


@pytest.mark.parametrize("states", [0, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (2000, 1), (3, 1025), (300, 200)])
def test_shapes_of_every_kind_come_back(shape: tuple[int, int], states: int) -> None:
    assert_comes_back([weights_like(1, *shape, 4.0), weights_like(2, *shape, 0.3)], [states, states])


@pytest.mark.parametrize("references", [[0, -1, 0], [0, 2, 0], [1, 0, 0]])
def test_a_row_refers_to_one_before_it(references: list[int]) -> None:
    differences = np.ones((3, 2), np.int8)
    assert add_references(differences, np.array([0, 1, 2]))[:, 0].tolist() == [1, 2, 2]
    with pytest.raises(ArtifactError, match="a row that does not exist"):
        add_references(differences, np.array(references))


def test_nothing_has_a_stream_too() -> None:
    assert decode(encode([], []), []) == []


@pytest.mark.slow
@pytest.mark.parametrize("magnitude", [0.2, 1.0, 3.0, 8.0, 30.0])
def test_codes_are_near_the_entropy_of_their_rows_and_columns(magnitude: float) -> None:
    """Known here: the variance of every code. The rest is what the coder pays for learning it, and for its lanes."""
    rng = np.random.default_rng(3)
    scale = magnitude * np.exp2(rng.normal(0, 0.5, (400, 1)) + rng.normal(0, 0.3, 300))
    codes = np.clip(np.round(rng.standard_normal((400, 300)) * scale), -127, 127).astype(np.int8)
    normal = np.vectorize(NormalDist().cdf)
    # On the side of the smaller tail, where a difference of shares keeps its digits.
    share = normal(-np.abs(codes) / scale + 0.5 / scale) - normal(-np.abs(codes) / scale - 0.5 / scale)
    ideal = -np.log2(np.maximum(share, 1e-12)).mean()
    stored = 8 * len(assert_comes_back([codes], [0])) / codes.size
    assert ideal < stored < ideal + 0.05
    assert stored < entropy_bits(codes)


def test_zeros_cost_next_to_nothing() -> None:
    assert len(encode([np.zeros((1000, 1000), np.int8)], [0])) < 500


@pytest.mark.parametrize("states", [0, 8])
def test_rows_that_repeat_another_cost_little(states: int) -> None:
    """As rows of symbols that never occur: a step apart from an earlier one."""
    rng = np.random.default_rng(4)
    table = rng.integers(-100, 101, (200, 128)).astype(np.int8)
    alone = len(encode([table], [0]))
    table[100:] = table[37] + rng.integers(-1, 2, (100, 128))
    assert len(assert_comes_back([table], [states])) < alone * 0.65


@pytest.mark.parametrize("states", [4, 8])
def test_the_quantiser_of_a_trellis_is_a_context(states: int) -> None:
    """Two codes in one quantiser and two others in the second: knowing which one it is leaves one bit of two."""
    rng, trellis = np.random.default_rng(5), TRELLISES[states]
    codes, state = np.zeros((300, 200), np.int8), np.zeros(300, np.intp)
    for column in range(200):
        codes[:, column] = np.where(trellis.quantiser[state], rng.choice([-3, 2], 300), rng.choice([-2, 3], 300))
        state = trellis.next_state[state, codes[:, column] & 1]
    with_states, without = (len(assert_comes_back([codes], [count])) for count in (states, 0))
    assert with_states < 0.6 * without


def test_a_later_matrix_is_coded_with_what_the_earlier_taught() -> None:
    """All codes are multiples of 8, which no prior knows."""
    codes = [(weights_like(seed, 96, 96, 2.0) * 8).astype(np.int8) for seed in range(4)]
    first, both = len(encode(codes[:1], [0])), len(encode(codes, [0] * 4))
    assert both < 4 * first * 0.97


def test_lanes_follow_from_the_number_of_codes() -> None:
    assert [num_lanes([CodedShape(1, size)]) for size in (1, 20, 10**5, 10**6, 3 * 10**6, 10**9)] == [
        1, 8, 8, 32, 128, 2048,
    ]  # fmt: skip


SMALL = [weights_like(6, 40, 30, 3.0), weights_like(7, 25, 30, 1.0), weights_like(8, 16, 12, 20.0)]
STATES = [0, 8, 0]


def test_damaged_streams_are_refused_or_give_codes_of_the_same_shapes() -> None:
    stream, shapes = encode(SMALL, STATES), shapes_of(SMALL, STATES)
    rng, refused = random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(stream)
        for _ in range(rng.choice([1, 1, 5])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if damaged == stream:
            continue
        try:
            decoded = decode(bytes(damaged), shapes)
            assert [matrix.shape for matrix in decoded] == [matrix.shape for matrix in SMALL]
        except ArtifactError:
            refused += 1
    # A damaged level or word ends in other states but for a chance of 2^-16 in every lane.
    assert refused > 140


def test_missing_and_trailing_bytes_are_refused() -> None:
    stream, shapes = encode(SMALL, STATES), shapes_of(SMALL, STATES)
    for size in range(0, len(stream), 7):
        with pytest.raises(ArtifactError, match="range coded"):
            decode(stream[:size], shapes)
    for tail in (b"\0", b"\0\0", bytes(1000)):
        with pytest.raises(ArtifactError, match="range coded"):
            decode(stream + tail, shapes)
    with pytest.raises(ArtifactError, match="range coded"):
        decode(b"", shapes)


def test_noise_of_any_length_is_refused() -> None:
    rng = np.random.default_rng(9)
    for size in (*range(40), 500, 5000):
        for fill in (rng.integers(0, 256, size), np.zeros(size), np.full(size, 255), np.full(size, 112)):
            with pytest.raises(ArtifactError, match="range coded"):
                decode(fill.astype(np.uint8).tobytes(), shapes_of(SMALL, STATES))


def test_a_trellis_as_long_as_it_would_take_minutes_is_refused() -> None:
    shape = CodedShape(1, MAX_TRELLIS_COLUMNS + 1, 4)
    with pytest.raises(ArtifactError, match="too long for a trellis"):
        encode([np.zeros((1, shape.columns), np.int8)], [4])
    with pytest.raises(ArtifactError, match="too long for a trellis"):
        decode(encode([np.zeros((1, shape.columns), np.int8)], [0]), [shape])


def golden_matrices() -> tuple[list[Codes], list[int]]:
    """Codes from integers alone, the same everywhere: sums of four draws from raw bits of a generator."""
    raw = np.random.PCG64(20261126).random_raw(13_000)
    draws = (raw[:, None] >> np.array([0, 16, 32, 48], np.uint64)) & np.uint64(0xFFFF)
    bell = draws.astype(np.int64).sum(1) - 2 * 65535
    found, start = [], 0
    for index, (rows, columns) in enumerate([(48, 64), (64, 48), (32, 128), (1, 77), (40, 50)]):
        codes = bell[start : start + rows * columns].reshape(rows, columns)
        codes = codes * (1 + np.arange(rows)[:, None] % 7) * (2 + np.arange(columns) % 5) >> 16 - index % 3
        found.append(np.clip(codes, -127, 127).astype(np.int8))
        start += rows * columns
    found[0][20:30] = found[0][7]
    return found, [0, 8, 0, 0, 4]


def test_the_golden_stream_decodes_and_is_written_again() -> None:
    codes, states = golden_matrices()
    stream = GOLDEN.read_bytes()
    for matrix, found in zip(codes, decode(stream, shapes_of(codes, states)), strict=True):
        np.testing.assert_array_equal(found, matrix)
    assert hashlib.sha256(encode(codes, states)).hexdigest() == hashlib.sha256(stream).hexdigest()


def test_the_estimate_is_what_the_coder_takes() -> None:
    matrices, states = [weights_like(seed, 256, 300, 3.0) for seed in range(3)], [0, 4, 8]
    stored = 8 * len(encode(matrices, states))
    # The rest of the stream is offsets, about three bits for each row and column.
    assert 0.97 * stored < range_bits(matrices, states) < stored
    alone = [range_bits([codes], [count]) for codes, count in zip(matrices, states, strict=True)]
    assert sum(alone) == pytest.approx(range_bits(matrices, states), rel=0.02)


def test_the_estimate_of_a_few_codes_is_that_of_the_prior() -> None:
    """A context that has counted next to nothing codes as one that has counted nothing, and code -128 is an escape."""
    ones, rare = np.ones((1, 4), np.int8), np.array([[1, 1, 1, -128]], np.int8)
    shares = prior_counts()[56] / prior_counts()[56].sum()
    assert range_bits([ones], [0]) == pytest.approx(-4 * np.log2(shares[129]), rel=0.02)
    assert range_bits([rare], [0]) > 8
    assert range_bits([], []) == 0.0
