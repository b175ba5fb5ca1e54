"""Means, paired differences and intervals: by hand, against tables, and by simulation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import RunError, UserError
from shared.scoring.confidence import student_quantile, student_tail
from shared.scoring.documents import DocumentScores, read_document_scores, write_document_scores
from shared.scoring.statistics import difference, document_interval, summarise

LN2 = math.log(2.0)


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_three_seeds_by_hand() -> None:
    """1, 2, 3: mean 2, deviation 1, t(.995, 2) = 9.92484, half = 9.92484 / sqrt 3 = 5.73011."""
    found = summarise([1.0, 2.0, 3.0], 0.99)
    assert (found.n, found.mean, found.std) == (3, 2.0, 1.0)
    assert found.interval is not None
    assert found.interval.low == pytest.approx(2.0 - 5.73011, abs=1e-4)
    assert found.interval.high == pytest.approx(2.0 + 5.73011, abs=1e-4)


def test_two_values_are_enough_and_one_is_not() -> None:
    """Half = t(.995, 1) * 1 = 63.6567."""
    found = summarise([1.0, 3.0], 0.99)
    assert found.interval is not None
    assert (found.std, found.interval.high) == (pytest.approx(math.sqrt(2.0)), pytest.approx(2.0 + 63.6567, abs=1e-3))
    found = summarise([1.5], 0.99)
    assert (found.n, found.mean, found.std, found.interval) == (1, 1.5, None, None)


def test_paired_difference_by_hand() -> None:
    """Differences -0.1, -0.2, -0.3: mean -0.2, deviation 0.1, half = 4.30265 * 0.1 / sqrt 3 = 0.248414."""
    found = difference(by_seed(1.9, 2.8, 3.7), by_seed(2.0, 3.0, 4.0), 0.95)
    assert (found.method, found.n, found.degrees) == ("paired", 3, 2)
    assert found.mean == pytest.approx(-0.2) and found.std == pytest.approx(0.1)
    assert found.interval is not None
    assert found.interval.high == pytest.approx(-0.2 + 0.248414, abs=1e-6)
    # t = -0.2 / (0.1 / sqrt 3) = -3.4641; with two degrees P(t > x) = (1 - x / sqrt(2 + x^2)) / 2.
    assert found.probability == pytest.approx((1 - 3.4641016 / math.sqrt(2 + 12.0)) / 2, rel=1e-6)


def test_a_margin_makes_better_harder() -> None:
    new, old = by_seed(1.9, 2.8, 3.7), by_seed(2.0, 3.0, 4.0)
    assert difference(new, old, 0.95, margin=0.2).probability == pytest.approx(0.5)
    free, strict = difference(new, old, 0.95), difference(new, old, 0.95, margin=0.1)
    assert free.probability is not None and strict.probability is not None
    assert free.probability < strict.probability < 0.5
    assert free.interval == strict.interval


def test_only_shared_seeds_are_paired() -> None:
    found = difference({0: 1.0, 1: 2.0, 2: 0.5, 7: 50.0}, {1: 2.5, 0: 1.25, 2: 0.125, 9: -4.0}, 0.99)
    assert (found.method, found.n) == ("paired", 3)
    assert found.mean == pytest.approx(-0.125)


def test_two_shared_seeds_are_paired_only_where_there_are_not_three_of_each() -> None:
    new, old = {0: 1.0, 1: 2.0, 7: 3.0}, {1: 2.5, 0: 1.25, 9: 3.75}
    found = difference(new, old, 0.99)
    assert (found.method, found.n) == ("welch", 3) and found.mean == pytest.approx(-0.5)
    del old[9]
    found = difference(new, old, 0.99)
    assert (found.method, found.n) == ("paired", 2) and found.mean == pytest.approx(-0.375)


def test_welch_by_hand() -> None:
    """Variances 1 and 4 over 3 and 3: error sqrt(5/3), degrees (5/3)^2 / (1/9/2 + 16/9/2) = 2.94, taken as 2."""
    found = difference({0: 1.0, 1: 2.0, 2: 3.0}, {5: 4.0, 6: 6.0, 7: 8.0}, 0.95)
    assert (found.method, found.n, found.degrees, found.mean) == ("welch", 3, 2, -4.0)
    assert found.interval is not None
    assert found.interval.high == pytest.approx(-4.0 + 4.30265 * math.sqrt(5 / 3), abs=1e-4)


def test_welch_with_equal_variances_has_all_degrees() -> None:
    assert difference({0: 1.0, 1: 2.0, 2: 3.0}, {5: 1.5, 6: 2.5, 7: 3.5}, 0.95).degrees == 4


def test_welch_takes_two_of_each_of_which_one_is_shared() -> None:
    found = difference({0: 1.0, 1: 2.0}, {0: 4.0, 2: 5.0}, 0.95)
    assert (found.method, found.n, found.mean, found.degrees) == ("welch", 2, -3.0, 2)


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [({0: 2.0}, {0: 3.0}, -1.0), ({0: 2.0}, {1: 3.0, 2: 4.0}, -1.5), ({0: 2.0, 1: 9.0}, {0: 3.0}, -1.0)],
)
def test_too_few_seeds_give_a_mean_and_no_more(new: dict[int, float], old: dict[int, float], expected: float) -> None:
    found = difference(new, old, 0.99)
    assert (found.method, found.n, found.mean) == ("none", 1, expected)
    assert found.interval is None and found.probability is None


def test_no_spread_at_all() -> None:
    same = difference(by_seed(1.0, 2.0), by_seed(1.0, 2.0), 0.99)
    assert same.interval is not None and (same.interval.low, same.interval.high) == (0.0, 0.0)
    assert same.probability == 1.0
    assert difference(by_seed(0.5, 1.5), by_seed(1.0, 2.0), 0.99).probability == 0.0
    apart = difference({0: 1.0, 1: 1.0}, {2: 1.5, 3: 1.5, 4: 1.5}, 0.99)
    assert apart.interval is not None and (apart.interval.low, apart.interval.high) == (-0.5, -0.5)
    assert (apart.method, apart.degrees, apart.probability) == ("welch", 1, 0.0)


@settings(max_examples=60)
@given(st.floats(0.001, 0.999), st.integers(1, 60))
def test_tail_and_quantile_are_inverse(probability: float, degrees: int) -> None:
    assert student_tail(student_quantile(probability, degrees), degrees) == pytest.approx(1.0 - probability, abs=1e-9)


finite = st.floats(-5.0, 5.0)


@settings(max_examples=60)
@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=8), finite)
def test_a_difference_turns_with_its_sides_and_ignores_what_both_share(
    pairs: list[tuple[float, float]], shift: float
) -> None:
    new, old = by_seed(*(a for a, _ in pairs)), by_seed(*(b for _, b in pairs))
    one, other = difference(new, old, 0.9), difference(old, new, 0.9)
    assert one.interval is not None and other.interval is not None
    assert one.mean == pytest.approx(-other.mean, abs=1e-12)
    assert one.interval.low == pytest.approx(-other.interval.high, abs=1e-9)
    lifted = difference({s: v + shift for s, v in new.items()}, {s: v + shift for s, v in old.items()}, 0.9)
    assert lifted.interval is not None and lifted.interval.low == pytest.approx(one.interval.low, abs=1e-9)


@pytest.mark.parametrize(("num_seeds", "paired"), [(3, True), (5, True), (3, False), (6, False)])
def test_the_interval_over_seeds_covers_as_often_as_it_says(num_seeds: int, paired: bool) -> None:
    """The truth is -0.3; a seed moves both models together, which only pairing removes."""
    rng = np.random.default_rng(num_seeds)
    trials, level, covered = 800, 0.9, 0
    for _ in range(trials):
        luck = rng.standard_normal(num_seeds)
        new = 2.0 + luck + 0.1 * rng.standard_normal(num_seeds) - 0.3
        old = 2.0 + (luck if paired else rng.standard_normal(num_seeds)) + 0.1 * rng.standard_normal(num_seeds)
        start = 0 if paired else num_seeds
        found = difference(by_seed(*new.tolist()), dict(enumerate(old.tolist(), start)), level)
        assert found.interval is not None and found.method == ("paired" if paired else "welch")
        covered += found.interval.low <= -0.3 <= found.interval.high
    slack = 4 * math.sqrt(level * (1 - level) / trials)
    # Degrees rounded down make Welch's interval cover more often, never less.
    assert covered / trials > level - slack
    assert not paired or covered / trials < level + slack


@pytest.mark.parametrize(
    ("news", "olds", "deviation", "most"),
    [("abc", "abc", 0.001, 0.01), ("abc", "def", 0.001, 0.01), ("abcde", "fgh", 0.003, 0.017)],
)
def test_no_record_is_beaten_by_chance_more_often_than_is_said(
    news: str, olds: str, deviation: float, most: float
) -> None:
    """New is better by exactly the margin, so p < 0.01 is luck. After Welch there is too much of it where three seeds
    of a large deviation meet five of a small one."""
    rng, trials, margin, beaten = np.random.default_rng(0), 3000, 0.0019, 0
    for _ in range(trials):
        seeds = dict(zip("abcdefgh", 0.002 * rng.standard_normal(8), strict=True)) if news == olds else {}
        new = {ord(s): 1.0 - margin + seeds.get(s, 0.0) + 0.001 * float(rng.standard_normal()) for s in news}
        old = {ord(s): 1.0 + seeds.get(s, 0.0) + deviation * float(rng.standard_normal()) for s in olds}
        found = difference(new, old, 0.99, margin)
        assert found.probability is not None and found.method == ("paired" if news == olds else "welch")
        beaten += found.probability < 0.01
    assert beaten / trials < most + 3 * math.sqrt(most / trials)
    assert beaten > 0


def scores(bits: np.ndarray, sizes: np.ndarray) -> DocumentScores:
    return DocumentScores(bits * LN2, sizes)


def test_document_interval_by_hand() -> None:
    """Ten documents of one byte whose differences are -2 and 0 in turn: R = -1, residuals from the others' ratio
    10/9, variance 10 * (10/9)^2 / 100 = (1/3)^2 * 10/9."""
    sizes = np.ones(10, np.int64)
    old = scores(np.full(10, 8.0), sizes)
    new = scores(np.where(np.arange(10) % 2 == 0, 6.0, 8.0), sizes)
    found = document_interval([new], [old], 0.95)
    assert found is not None and found.low_bpb is not None and found.high_bpb is not None
    assert found.low_bpb == pytest.approx(-1.0 - 2.262157 / 3 * math.sqrt(10 / 9), abs=1e-5)
    assert found.high_bpb == pytest.approx(-1.0 + 2.262157 / 3 * math.sqrt(10 / 9), abs=1e-5)


def test_document_interval_averages_the_runs_of_each_side() -> None:
    sizes = np.arange(1, 13)
    rng = np.random.default_rng(0)
    runs = [scores(rng.random(12), sizes) for _ in range(4)]
    mean = DocumentScores((runs[0].nats + runs[1].nats) / 2, sizes)
    assert document_interval(runs[:2], runs[2:], 0.9) == document_interval([mean], runs[2:], 0.9)


def test_few_documents_or_none_give_no_interval() -> None:
    few = scores(np.ones(4), np.ones(4, np.int64))
    found = document_interval([few], [few], 0.9)
    assert found is not None and found.low_bpb is None and found.reason == "4 documents, at least 5 are needed"
    assert document_interval([], [few], 0.9) is None


@pytest.mark.slow
def test_the_interval_over_documents_covers_as_often_as_it_says() -> None:
    """Documents share their difficulty between the models; the truth is -0.05 bits per byte."""
    rng = np.random.default_rng(1)
    trials, level, covered = 700, 0.9, 0
    for _ in range(trials):
        sizes = rng.integers(50, 150, 40)
        difficulty = 2.0 + 0.5 * rng.standard_normal(40)
        old = scores(sizes * difficulty, sizes)
        new = scores(sizes * (difficulty - 0.05 + 0.1 * rng.standard_normal(40)), sizes)
        found = document_interval([new], [old], level)
        assert found is not None and found.low_bpb is not None and found.high_bpb is not None
        covered += found.low_bpb <= -0.05 <= found.high_bpb
    assert abs(covered / trials - level) < 4 * math.sqrt(level * (1 - level) / trials)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, math.nan])
def test_impossible_level(level: float) -> None:
    for call in (lambda: summarise([1.0, 2.0], level), lambda: difference({0: 1.0}, {0: 2.0}, level)):
        with pytest.raises(UserError, match="confidence"):
            call()


def test_document_scores_return_from_their_file_even_as_columns(tmp_path: Path) -> None:
    matrix = np.arange(24.0).reshape(12, 2)
    path = tmp_path / "documents.safetensors"
    write_document_scores(path, DocumentScores(matrix[:, 0], matrix[:, 1].astype(np.int64)))
    total, size = float(matrix[:, 0].sum()), int(matrix[:, 1].sum())
    found = read_document_scores(path, documents=12, num_bytes=size, nats=total)
    assert found is not None and found.nats.tolist() == matrix[:, 0].tolist()
    assert found.bytes.tolist() == matrix[:, 1].tolist()


def test_document_scores_must_add_up(tmp_path: Path) -> None:
    path = tmp_path / "documents.safetensors"
    assert read_document_scores(path, documents=3, num_bytes=3, nats=3.0) is None
    write_document_scores(path, DocumentScores(np.ones(3), np.ones(3, np.int64)))
    for documents, num_bytes, nats in ((2, 3, 3.0), (3, 4, 3.0), (3, 3, 3.1)):
        with pytest.raises(RunError, match="does not add up"):
            read_document_scores(path, documents=documents, num_bytes=num_bytes, nats=nats)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(RunError, match="not a safetensors file"):
        read_document_scores(path, documents=3, num_bytes=3, nats=3.0)
