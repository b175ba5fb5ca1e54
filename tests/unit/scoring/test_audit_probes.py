"""What the audit looks at: every position of a window, the order of windows, and the nats by position."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine.oracle import Oracle
from shared.engine.protocol import Scorer
from shared.model import random_weights
from shared.scoring import leaks, probe
from shared.scoring.audit import audit_scorer
from shared.scoring.bits_per_byte import Score, read_windows, score_stream
from shared.scoring.checks import Check
from shared.scoring.leaks import check_leaks
from shared.scoring.order import check_order_of_score
from shared.scoring.positions import MIN_WINDOWS, check_positions
from shared.scoring.probe import make_probe, required_positions
from shared.spec import Spec, load_spec
from tests.museum.accounting import EarlierRows, RoundedDown, ScoredBefore, WrappedScorer, normalised
from tests.museum.fake_stream import FakeStream

PEEK = 30.0
TOKENS = ("model.decoder.kind=linear", "vocabulary.kind=tokens")


def spec_of(seq_len: int, patch_size: int, *overrides: str) -> Spec:
    sizes = [f"model.seq_len={seq_len}", f"model.patch_size={patch_size}", "model.num_layers=1"]
    batches = [f"training.batch_symbols={8 * seq_len}", f"evaluation.batch_symbols={8 * seq_len}"]
    return load_spec("tiny", [*sizes, *batches, *overrides])


def by_name(checks: list[Check]) -> Mapping[str, Check]:
    return {check.name: check for check in checks}


class Uniform:
    """Knows nothing, whatever the vocabulary, and counts what it is asked."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.scored, self.most_rows = spec, 0, 0

    def score(self, x: np.ndarray) -> np.ndarray:
        self.scored += len(x)
        return np.full(x.shape, np.log(self.spec.vocabulary.size), np.float32)

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        self.most_rows = max(self.most_rows, len(x))
        return np.broadcast_to(-np.log(np.float32(self.spec.vocabulary.size)), (*x.shape, self.spec.vocabulary.size))


class Peeking(WrappedScorer):
    """Sees the symbol itself at some positions."""

    def __init__(self, inner: Scorer, positions: list[int]) -> None:
        super().__init__(inner)
        self.positions = positions

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        seen = x[..., None] == np.arange(self.spec.vocabulary.size)
        seen &= np.isin(np.arange(x.shape[1]), self.positions)[:, None]
        return normalised(log_probs + PEEK * seen)


class Early(Peeking):
    """Sees the symbol after at some positions."""

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        return super().adjust(log_probs, np.roll(x, -1, axis=1))


class FullCache(WrappedScorer):
    """Knows text that it has scored before, and by the time of the audit all there is: no change shows any more."""

    def __init__(self, inner: Scorer, symbols: int) -> None:
        super().__init__(inner)
        self.left, self.followers = symbols, np.zeros((256, 256))

    def score(self, x: np.ndarray) -> np.ndarray:
        nats = super().score(x)
        if self.left > 0:
            self.left -= x.size
            np.add.at(self.followers, (x[:, :-1], x[:, 1:]), 1.0)
        return nats

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        return normalised(log_probs + np.pad(np.log1p(self.followers[x[:, :-1]]), ((0, 0), (1, 0), (0, 0))))


@settings(max_examples=60)
@given(
    patch_size=st.integers(1, 16),
    patches=st.integers(1, 40),
    vocabulary=st.sampled_from(["byte256", "byte260"]),
    rows=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_probes_reach_every_position(patch_size: int, patches: int, vocabulary: str, rows: int, seed: int) -> None:
    seq_len = patch_size * patches
    spec = spec_of(seq_len, patch_size, f"vocabulary.kind={vocabulary}")
    made = make_probe(spec, np.arange(5, dtype=np.int32), seed, rows)
    assert sorted(made.positions) == list(range(seq_len))
    first = set(made.positions[: made.required])
    assert first == set(required_positions(seq_len, patch_size)) >= {0, seq_len - 1, seq_len - patch_size}
    assert {position % patch_size for position in first} == set(range(patch_size))
    near_powers = {unit << shift for unit in (1, patch_size) for shift in range(12)}
    assert {power + step for power in near_powers for step in (-1, 0, 1)} & set(range(seq_len)) <= first
    assert made.pass_rows == rows and len(made.x) % rows == 0 and len(made.x) >= 4
    assert made.x.min() >= 0
    for instead in (made.other, made.targets):
        assert (instead != made.x).all() and instead.min() >= 0 and instead.max() < spec.vocabulary.size
    met = set()
    for times in made.disturbances():
        x = made.disturbed(times)
        for row, t in enumerate(times.tolist()):
            assert (x[row, :t] == made.x[row, :t]).all() and (x[row, t:] != made.x[row, t:]).all()
            met.add(t)
    assert met == set(range(seq_len))
    if spec.vocabulary.document_start is not None:
        assert {spec.vocabulary.document_start} >= set(made.targets[1::2][made.x[1::2] != 1].tolist())


@settings(max_examples=12)
@given(patch_size=st.sampled_from([1, 3, 4]), patches=st.integers(2, 20), data=st.data())
def test_a_leak_at_one_position_is_found(patch_size: int, patches: int, data: st.DataObject) -> None:
    spec = spec_of(patch_size * patches, patch_size, *([] if patch_size > 1 else ["model.decoder.kind=linear"]))
    oracle = Oracle(spec, random_weights(spec, 0))
    position = data.draw(st.integers(0, spec.model.seq_len - 1))
    made = make_probe(spec, np.arange(32, 127, dtype=np.int32), 0, 8)
    honest, planted = (by_name(check_leaks(each, made, 1e9)) for each in (oracle, Peeking(oracle, [position])))
    assert all(check.passed for check in honest.values())
    assert [name for name, check in planted.items() if not check.passed] == ["target"]
    assert f"at symbol {position} when symbol {position} changed" in planted["target"].detail
    before = max(position - 1, 0)
    planted = by_name(check_leaks(Early(oracle, [before]), made, 1e9))
    assert not planted["future"].passed and planted["normalisation"].passed
    assert f"at symbol {before} when symbol {before + 1} changed" in planted["future"].detail


def test_a_distribution_that_moves_where_no_symbol_is_scored_is_found() -> None:
    """Two symbols that are in no row change places by the symbol of whose distribution they are part."""
    spec = spec_of(16, 4)
    oracle, made = Oracle(spec, random_weights(spec, 0)), make_probe(spec, np.arange(32, 127, dtype=np.int32), 0, 8)
    free = np.setdiff1d(np.arange(256), np.concatenate([made.x[:, 0], made.targets[:, 0]]))[[0, 1]]

    class Reordered(WrappedScorer):
        def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
            log_probs = log_probs.copy()
            for row in np.flatnonzero(np.isin(x[:, 0], made.targets[:, 0])):
                log_probs[row, 0, free] = log_probs[row, 0, free[::-1]]
            return log_probs

    failed = [check for check in check_leaks(Reordered(oracle), made) if not check.passed]
    apart = float(np.abs(np.subtract(*oracle.log_probs(made.x[:1])[0, 0, free])))
    assert [(check.name, check.measured) for check in failed] == [("target", pytest.approx(apart, rel=1e-3))]
    assert "distribution moved by" in failed[0].detail and "at symbol 0 when symbol 0 changed" in failed[0].detail


def test_a_probe_says_what_it_left_out() -> None:
    spec = spec_of(256, 4)
    made = make_probe(spec, np.arange(200, dtype=np.int32), 0, 4)
    everything = check_leaks(Uniform(spec), made, 1e9)[0]
    assert everything.detail.endswith("all 256 positions of a window disturbed")
    scorer = Uniform(spec)
    least = check_leaks(scorer, made)[0]
    needed = -(-made.required // 4) * 4
    assert scorer.scored == 4 + needed
    assert least.detail.endswith(f"{needed} of 256 positions of a window disturbed, those where mistakes are likely")


def test_positions_that_count_in_every_window_come_before_those_read_for_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = spec_of(256, 4, "evaluation.stride_symbols=64")
    made = make_probe(spec, np.arange(200, dtype=np.int32), 0, 4)
    rest = made.positions[made.required :]
    counted = [t for t in rest if t >= 192]
    assert counted and list(rest[: len(counted)]) == counted
    # Time for all of these and no more.
    left = -(-(made.required + len(counted)) // 4) - -(-made.required // 4)
    clock = iter([0.0, *[0.0] * left, *[2.0] * 100])
    monkeypatch.setattr(leaks.time, "perf_counter", lambda: next(clock))
    detail = check_leaks(Uniform(spec), made, 1.0)[0].detail
    assert "of 256 positions" in detail and detail.endswith("all 64 that count in every window among them")


def test_time_that_is_up_ends_the_disturbances(monkeypatch: pytest.MonkeyPatch) -> None:
    """The required positions and then one group of rows more for every second that is left."""
    spec, now = spec_of(256, 4), 0.0

    class Slow(Uniform):
        def score(self, x: np.ndarray) -> np.ndarray:
            nonlocal now
            now += 1.0
            return super().score(x)

    monkeypatch.setattr(leaks.time, "perf_counter", lambda: now)
    made = make_probe(spec, np.arange(200, dtype=np.int32), 0, 4)
    groups = -(-made.required // 4)
    for seconds, expected in ((1.0, groups), (groups + 2.5, groups + 3)):
        detail = check_leaks(Slow(spec), made, seconds)[0].detail
        assert detail.endswith(f"{4 * expected} of 256 positions of a window disturbed, as many as {seconds:g} s allow")


@pytest.mark.parametrize(("vocab_size", "rows"), [(300, 8), (8192, 4), (65536, 1)])
def test_log_probabilities_stay_within_their_memory(vocab_size: int, rows: int) -> None:
    spec = spec_of(2048, 1, *TOKENS, f"vocabulary.vocab_size={vocab_size}")
    made = make_probe(spec, np.arange(100, dtype=np.int32), 0, 8)
    assert made.pass_rows == rows and len(made.x) >= 4
    assert rows == 1 or rows * 2048 * vocab_size * 4 <= probe.LOG_PROBS_BYTES


def test_large_vocabularies_are_normalised_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_CHUNK_VALUES", 1000)
    monkeypatch.setattr(probe, "LOG_PROBS_BYTES", 4 * 64 * 500)
    spec = spec_of(64, 1, *TOKENS, "vocabulary.vocab_size=500")
    oracle = Oracle(spec, random_weights(spec, 0))
    made = make_probe(spec, np.arange(100, dtype=np.int32), 0, 8)
    assert made.pass_rows == 1
    assert all(check.passed for check in check_leaks(oracle, made))

    class TooLikely(WrappedScorer):
        def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
            return log_probs + 0.01 * (np.arange(x.shape[1]) == 37)[:, None]

    failed = {check.name: check.measured for check in check_leaks(TooLikely(oracle), made) if not check.passed}
    assert failed == {"normalisation": pytest.approx(np.expm1(0.01), rel=1e-6)}
    assert not by_name(check_leaks(RoundedDown(oracle), made))["normalisation"].passed


SPEC = spec_of(32, 1, "model.decoder.kind=linear")
ORACLE = Oracle(SPEC, random_weights(SPEC, 0))


def stream_of(windows: int, seq_len: int = 32) -> FakeStream:
    """Words at random in one document."""
    rng, words = np.random.default_rng(0), [b"cat ", b"sat on ", b"the ", b"mat, ", b"ran ", b"and then ", b"off. "]
    text = b"".join(words[index] for index in rng.integers(0, len(words), windows * seq_len))
    return FakeStream([text[: windows * seq_len - 5]])


def scored(scorer: Scorer, stream: FakeStream, stride: int | None = None, rows: int = 8) -> Score:
    seq_len = scorer.spec.model.seq_len
    return score_stream(scorer, stream, seq_len=seq_len, stride=stride or seq_len, batch_rows=rows, confidence=0.95)


@pytest.mark.parametrize("windows", [1, 2, 7, 30])
@pytest.mark.parametrize("stride", [32, 8])
def test_honest_scores_do_not_hang_on_the_order(windows: int, stride: int) -> None:
    stream = stream_of(windows)
    score = scored(ORACLE, stream, stride)
    assert 1 <= len(score.evidence.kept) <= 8 and score.evidence.kept[0][0].start == 0
    check = check_order_of_score(ORACLE, score, stream)
    assert check.passed and check.measured == pytest.approx(0.0, abs=1e-12)


def test_a_cache_that_is_full_before_the_audit_is_found() -> None:
    """No disturbance changes what it knows by then; what was counted does not come out again."""
    stream = stream_of(30)
    cache = FullCache(ORACLE, stream.num_symbols)
    report = audit_scorer(cache, stream, scored(cache, stream))
    assert [check.name for check in report.failures] == ["order"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("planted", [EarlierRows, ScoredBefore])
def test_scores_that_hang_on_other_text_are_found(planted: type[WrappedScorer], dtype: str) -> None:
    """Also where single scores may move a little, as on a GPU in bfloat16."""
    spec = spec_of(32, 1, "model.decoder.kind=linear", f"training.dtype={dtype}")
    stream, rng = stream_of(30), np.random.default_rng(0)
    scorer = planted(Oracle(spec, random_weights(spec, 0)))
    check = check_order_of_score(scorer, scored(scorer, stream), stream)
    assert not check.passed and check.measured > 0.05

    class Rounded(WrappedScorer):
        def score(self, x: np.ndarray) -> np.ndarray:
            return super().score(x) + 3e-3 * rng.choice([-1.0, 1.0], x.shape)

    rounded = Rounded(scorer.inner)
    assert check_order_of_score(rounded, scored(rounded, stream), stream).passed == (dtype == "bfloat16")


@pytest.mark.parametrize("stride", [32, 8])
def test_nats_by_position_are_those_of_the_windows(stride: int) -> None:
    stream = stream_of(20)
    score = scored(ORACLE, stream, stride)
    nats = ORACLE.score(read_windows(stream, score.windows, len(score.windows), 32))
    symbol = np.array([window.start for window in score.windows])[:, None] + np.arange(32)
    starts, stops = np.array([(window.count_start, window.count_stop) for window in score.windows]).T[..., None]
    counted = (starts <= symbol) & (symbol < stops)
    sums = score.evidence.positions
    assert sums.counts.sum() == score.symbols and (sums.counts == counted.sum(axis=0)).all()
    np.testing.assert_allclose(sums.nats, np.where(counted, nats, 0.0).sum(axis=0))
    np.testing.assert_allclose(sums.squares, np.where(counted, nats**2, 0.0).sum(axis=0))


class Synthetic:
    """Nats as those of a model: long-tailed, more at the start of the window, another mean at each offset."""

    def __init__(self, spec: Spec, seed: int, factors: Mapping[int, float] | None = None) -> None:
        self.spec, self.rng = spec, np.random.default_rng(seed)
        position, size = np.arange(spec.model.seq_len), spec.model.patch_size
        self.mean = (1.0 + 2.0 / (1.0 + position)) * self.rng.uniform(0.8, 2.0, size)[position % size]
        for t, factor in (factors or {}).items():
            self.mean[t] *= factor

    def score(self, x: np.ndarray) -> np.ndarray:
        return (self.mean * self.rng.exponential(1.0, x.shape)).astype(np.float32)


def positions_check(spec: Spec, stream: FakeStream, factors: Mapping[int, float], seed: int, stride: int) -> Check:
    return check_positions(scored(Synthetic(spec, seed, factors), stream, stride), spec.model.patch_size, stream)


@pytest.mark.parametrize(("patch_size", "stride"), [(1, 128), (1, 64), (8, 128), (8, 96), (12, 120)])
@pytest.mark.parametrize("windows", [30, 300])
def test_honest_positions_pass(patch_size: int, stride: int, windows: int) -> None:
    spec = spec_of(128 // patch_size * patch_size, patch_size)
    stream = stream_of(windows, stride)
    checks = [positions_check(spec, stream, {}, seed, stride) for seed in range(6)]
    assert all(check.passed for check in checks), checks
    assert max(check.measured for check in checks) > 1.0


@pytest.mark.parametrize(
    ("patch_size", "factors"),
    [
        (1, {100: 0.0}),
        (8, {101: 0.0}),
        (1, dict.fromkeys(range(64, 512, 64), 0.1)),
        (8, dict.fromkeys(range(32, 512, 32), 0.1)),
        (1, {**dict.fromkeys(range(512), 0.01), 100: 0.0}),
    ],
)
def test_positions_that_leak_are_named(patch_size: int, factors: dict[int, float]) -> None:
    spec, stream = spec_of(512, patch_size), stream_of(120, 512)
    check = positions_check(spec, stream, factors, 0, 512)
    assert not check.passed and check.measured > check.limit
    assert any(f"position {t} lie" in check.detail for t in factors if factors[t] == min(factors.values()))


def test_positions_whose_nats_vary_more_than_those_of_others_are_no_leak() -> None:
    """The spread of most means says nothing about these; their own standard error does."""

    class Uneven(Synthetic):
        def score(self, x: np.ndarray) -> np.ndarray:
            return np.where(np.arange(x.shape[1]) % 4 == 3, super().score(x), self.mean).astype(np.float32)

    spec, stream = spec_of(128, 4), stream_of(60, 128)
    checks = [check_positions(scored(Uneven(spec, seed), stream), 4, stream) for seed in range(4)]
    assert all(check.passed for check in checks), checks


def test_positions_that_count_in_no_window_but_the_first_are_not_compared() -> None:
    spec, stream = spec_of(512, 8), stream_of(120, 256)
    check = positions_check(spec, stream, {}, 0, 256)
    assert check.passed and "256 of 512 positions compared" in check.detail
    few = positions_check(spec, stream_of(MIN_WINDOWS - 1, 512), {}, 0, 512)
    assert few.passed and few.detail.startswith("not compared: needs 24 windows")
    # The text ends five symbols before the last window.
    enough = positions_check(spec, stream_of(MIN_WINDOWS, 512), {}, 0, 512)
    assert enough.passed and "507 of 512 positions compared" in enough.detail


@pytest.mark.parametrize(("patch_size", "offset"), [(8, 3), (2, 1)])
def test_an_offset_of_the_patch_that_leaks_is_named(patch_size: int, offset: int) -> None:
    spec, stream = spec_of(128, patch_size), stream_of(60, 128)
    check = positions_check(spec, stream, dict.fromkeys(range(offset, 128, patch_size), 0.1), 0, 128)
    assert not check.passed and check.detail.startswith(f"offset {offset} of the patch has 0.")


@pytest.mark.parametrize(("every", "factors"), [(64, range(63, 512, 64)), (8, range(7, 512, 8))])
def test_text_that_varies_less_there_is_no_leak(every: int, factors: range) -> None:
    """Lines of equal length end at the same positions of all windows, and at the same offset of all patches."""
    spec = spec_of(512, 8)
    words = stream_of(120, 512).text_bytes().ljust(120 * 512, b"x")
    lines = b"".join(words[start : start + every - 1] + b"\n" for start in range(0, len(words), every))
    known = dict.fromkeys(factors, 0.001)
    assert positions_check(spec, FakeStream([lines]), known, 0, 512).passed
    assert not positions_check(spec, FakeStream([words]), known, 0, 512).passed


def test_a_text_that_is_known_by_heart_has_no_outliers() -> None:
    spec, stream = spec_of(128, 1), stream_of(60, 128)
    check = positions_check(spec, stream, dict.fromkeys(range(128), 0.0), 0, 128)
    assert check.passed
