"""Calibration: shares of ranks, the record in the artifact, and the check that its text is not held out."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from data.datasets import open_split
from data.making import make_missing
from shared.artifact import pack_bytes, unpack_bytes
from shared.artifact.calibration import (
    CALIBRATION_KEY,
    Calibration,
    CalibrationRecord,
    calibrate,
    make_record,
    needs_statistics,
    window_length,
)
from shared.artifact.statistics import input_statistics
from shared.errors import ArtifactError, SpecError
from shared.model import random_weights
from shared.scoring.calibration_check import check_calibration
from shared.spec import Spec, load_spec
from shared.training.calibration import (
    calibrate_weights,
    calibration_windows,
    check_calibration_time,
    is_calibrated,
    make_calibration,
)
from shared.training.sources import open_training_text
from tests.implementations import OPS
from tests.instruction_sets import SETS
from tests.museum.fake_stream import FakeStream
from tests.processes import run_python
from tests.unit.engine.test_leader import ThreadRanks

BASE = ("model.num_layers=2", "model.seq_len=48", "training.batch_symbols=480", "evaluation.batch_symbols=96")
WINDOWS = 3
GPTQ = "artifact.matrix.rounding='gptq'"


def small_spec(*overrides: str) -> Spec:
    return load_spec("tiny", [*BASE, f"artifact.calibration.windows={WINDOWS}", *overrides])


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("given", [False, True])
def test_ranks_write_and_measure_what_one_does(world_size: int, given: bool) -> None:
    """Also where some of them have no window."""
    spec = small_spec()
    weights, ops = random_weights(spec, 0), OPS["numpy"]
    windows = np.random.default_rng(0).integers(0, 256, (WINDOWS, 48)).astype(np.int32) if given else None
    alone = calibrate(ops, spec, weights, windows)
    slots, barrier = [None] * world_size, threading.Barrier(world_size)
    found: dict[int, tuple] = {}

    def of_rank(rank: int) -> None:
        ranks = ThreadRanks(rank, world_size, slots, barrier)
        found[rank] = calibrate(ops, spec, weights, windows, ranks)

    threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for symbols, statistics in found.values():
        np.testing.assert_array_equal(symbols, alone[0])
        assert statistics.keys() == alone[1].keys()
        for name, expected in alone[1].items():
            each = statistics[name]
            assert each.rows == expected.rows, name
            np.testing.assert_array_equal(each.reads, expected.reads)
            if expected.gram is None:
                assert each.gram is None
            else:
                np.testing.assert_allclose(each.gram, expected.gram, rtol=1e-12, atol=1e-12)


def test_statistics_are_those_of_the_windows_and_progress_counts_both_halves() -> None:
    spec, ended = small_spec(), []
    weights = random_weights(spec, 0)
    windows, statistics = calibrate(OPS["numpy"], spec, weights, progress=lambda *counts: ended.append(counts))
    assert windows.shape == (WINDOWS, 48)
    expected = input_statistics(OPS["numpy"], spec, weights, [windows])
    for name, each in expected.items():
        assert statistics[name].rows == each.rows
        if each.gram is not None:
            np.testing.assert_allclose(statistics[name].gram, each.gram, rtol=1e-12, atol=1e-12)
    assert {total for _, total in ended} == {2 * WINDOWS * 48}
    assert [done for done, _ in ended] == sorted(done for done, _ in ended) and ended[-1][0] == 2 * WINDOWS * 48


def test_nothing_is_calibrated_where_no_tensor_needs_it() -> None:
    spec = small_spec()
    assert not needs_statistics(spec) and calibrate_weights("numpy", spec, random_weights(spec, 0)) is None


def test_a_model_is_packed_without_any_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTETWIN_DATASETS", "/nonexistent")
    spec = small_spec(GPTQ, "data.train=nothing", "data.heldout=nothing")
    weights = random_weights(spec, 0)
    with pytest.raises(ArtifactError, match="needs statistics"):
        pack_bytes(spec, weights)
    made = calibrate_weights("numpy", spec, weights)
    assert made is not None
    artifact = unpack_bytes(pack_bytes(spec, weights, made.extra(), made.statistics))
    assert CalibrationRecord.model_validate(artifact.header["extra"][CALIBRATION_KEY]) == made.record
    assert str(made.record) == "3 windows of 48 symbols, written by the model itself at temperature 0.8, seed 0"
    assert is_calibrated(spec) and not is_calibrated(small_spec())
    with pytest.raises(SpecError, match=r"artifact.calibration.source = 'none': must be self_generated or train"):
        small_spec(GPTQ, "artifact.calibration.source='none'")


def test_training_text_is_taken_by_the_seed_and_found_again() -> None:
    make_missing("builtin")
    source = "artifact.calibration.source='train'"
    spec, other = (small_spec(GPTQ, source, f"artifact.calibration.seed={n}") for n in (0, 1))
    made = calibrate_weights("numpy", spec, random_weights(spec, 0))
    text = open_training_text(spec)
    assert made is not None and made.record.text == "builtin/train" and made.record.text_sha256 == text.sha256
    np.testing.assert_array_equal(made.windows, calibration_windows(spec, text))
    assert not np.array_equal(made.windows, calibration_windows(other, text))
    whole = text.read(0, text.num_symbols).tobytes()
    assert all(window.tobytes() in whole for window in made.windows)
    heldout = open_split("builtin", "heldout", spec.vocabulary)
    assert check_calibration(made.record, heldout, made.windows).passed
    assert not check_calibration(made.record, heldout, calibration_windows(other, text)).passed


def record_of(windows: np.ndarray, **changes: object) -> CalibrationRecord:
    return make_record(small_spec(), windows).model_copy(update=changes)


PACK = """
import hashlib, sys
from shared.artifact import pack_bytes
from shared.engine.package import create_engine
from shared.model import random_weights
from shared.spec import load_spec
from shared.training.calibration import calibrate_weights
spec = load_spec("tiny", sys.argv[1:])
weights = random_weights(spec, 0)
made = calibrate_weights("numpy", spec, weights)
for name in ("mlx", "torch"):
    engine = create_engine(name, spec)
    engine.initialise(weights)
    packed = pack_bytes(spec, engine.export_weights("trained"), made.extra(), made.statistics)
    print(hashlib.sha256(packed).hexdigest())
"""


@pytest.mark.slow
def test_bytes_are_equal_from_both_engines_and_on_older_processors() -> None:
    """With statistics in float64. An engine's own differ by its rounding, and so do a few codes."""
    words = (*BASE, GPTQ, f"artifact.calibration.windows={WINDOWS}", "training.compile=false")
    printed = [run_python(PACK, *words, **variables).split() for variables in ({}, *SETS.values())]
    assert len({digest for digests in printed for digest in digests}) == 1 and {*map(len, printed)} == {2}


def test_held_out_text_is_refused_by_name_by_hash_and_by_its_symbols() -> None:
    rng = np.random.default_rng(0)
    heldout = FakeStream([rng.bytes(600) for _ in range(9)], small_spec().vocabulary)
    copied = np.stack([heldout.read(start, 130) for start in (7, 611, 1300)])
    written = rng.integers(0, 256, copied.shape).astype(np.int32)
    fine = check_calibration(record_of(written), heldout, written)
    assert fine.passed and fine.measured == 0.0 and "0.00% of its runs" in fine.detail
    assert check_calibration(record_of(written), heldout).detail.endswith("as the artifact says")
    caught = check_calibration(record_of(copied), heldout, copied)
    assert not caught.passed and caught.measured == 1.0
    half = np.where(np.arange(130) < 64, copied, written)
    assert check_calibration(record_of(half), heldout, half).measured == 0.5
    # Of a few symbols any text has them all.
    short = check_calibration(record_of(copied[:, :31]), heldout, copied[:, :31])
    assert short.passed and short.warning and np.isnan(short.measured)
    for changes in ({"text": "enwiki/heldout"}, {"text": "x/train", "text_sha256": heldout.sha256}):
        assert not check_calibration(record_of(written, source="train", **changes), heldout).passed
    assert not check_calibration(record_of(copied), heldout, written).passed
    assert not check_calibration(None, heldout).passed


def test_curvature_is_of_the_nats_whatever_was_trained_for() -> None:
    """Not of the loss of training, which may need what a packer does not have, and of what was frozen too."""
    tokens = ("vocabulary.kind=tokens", "vocabulary.vocab_size=300", "model.lora.rank=2", "training.compile=false")
    two_sided = (*tokens, "artifact.matrix.method=uniform", "artifact.matrix.rounding=two_sided")
    training = "loss.byte_weighted=true loss.z_weight=0.1 loss.multi_symbol.weights=[0.5] qat.form=noise freeze=base"
    plain = small_spec(*two_sided)
    other = small_spec(*two_sided, *(f"training.{words}" for words in training.split()))
    weights = random_weights(plain, 0)
    expected, found = (make_calibration("mlx", spec, weights).statistics for spec in (plain, other))
    for name in ("layers.0.attn.q_proj.weight", "layers.1.mlp.down_proj.weight"):
        assert expected[name].curvature is not None and found[name].curvature is not None
        np.testing.assert_array_equal(found[name].curvature.outputs, expected[name].curvature.outputs)


def test_calibration_on_training_text_is_training_time() -> None:
    timed = ("schedule.driver='time'", "training.time_limit_s=60.0", "training.reserve_s=4.0")
    spec = small_spec(*timed)
    assert check_calibration_time(spec, 3.9).passed and not check_calibration_time(spec, 4.1).passed
    assert "4.1 s on training text, of 4 s" in check_calibration_time(spec, 4.1).detail


def test_lengths_of_windows() -> None:
    assert window_length(small_spec()) == 48
    assert window_length(small_spec("artifact.calibration.window_symbols=24")) == 24
    assert window_length(small_spec("artifact.calibration.window_symbols=96")) == 48
    assert window_length(small_spec("artifact.calibration.window_symbols=23")) == 20
    assert window_length(small_spec("artifact.calibration.window_symbols=3")) == 4


def test_a_calibration_keeps_its_symbols() -> None:
    windows = np.arange(8, dtype=np.int32).reshape(2, 4)
    made = Calibration({}, windows, record_of(windows))
    assert made.extra()[CALIBRATION_KEY] == {
        "source": "self_generated",
        "windows": 2,
        "window_symbols": 4,
        "seed": 0,
        "temperature": 0.8,
        "symbols_hash": made.record.symbols_hash,
    }
