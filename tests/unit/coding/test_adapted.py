"""Coding with adaptation: what was learnt is learnt again, and a machine that learns otherwise is refused at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data.byte_stream import ByteStream, ByteText
from shared.coding import adapted
from shared.coding.codec import Codec
from shared.coding.container import COMMON, COMMON_SETTINGS, FIXED_BYTES, OWN, PLAIN, TOLD, checksum, parse
from shared.coding.proof import prove
from shared.engine.package import create_scorer
from shared.errors import DataError, UserError
from shared.model import random_weights
from shared.scoring.adaptation import score_adapted
from shared.scoring.bits_per_byte import score_by_spec
from shared.spec import load_spec
from shared.spec.adaptation import AdaptationSpec

SPEC = load_spec(
    "tiny",
    [
        "model.num_layers=1",
        "model.seq_len=32",
        "evaluation.stride_symbols=16",
        "training.compile=false",
        "evaluation.adaptation.chunk_symbols=32",
    ],
)
TEXT = np.frombuffer(b"It learns, and learns it again. " * 6, np.uint8).astype(np.int32)
SMALL = AdaptationSpec(kind="score_first", chunk_symbols=32, rate=0.01)


def codec(settings: AdaptationSpec = SMALL, engine: str = "mlx") -> Codec:
    return Codec(SPEC, random_weights(SPEC, 3), "5a" * 32, engine, settings)


@pytest.mark.parametrize("engine", ["mlx", "torch"])
def test_what_was_learnt_is_learnt_again(engine: str) -> None:
    content, coded = codec(engine=engine).compress(TEXT)
    again, text = replace(codec(), engine=None).decompress(content)
    assert np.array_equal(again, TEXT) and text == TEXT.astype(np.uint8).tobytes()
    plain = codec(AdaptationSpec()).compress(TEXT)[1]
    assert coded.nats < 0.9 * plain.nats, "nothing was learnt from a text that repeats itself"
    learning = parse(content, 256).learning
    assert learning is not None and (learning.engine, learning.settings) == (engine, SMALL)


DOCUMENT = AdaptationSpec.model_validate(
    {
        "kind": "document",
        "chunk_symbols": 16,
        "rate": 0.02,
        "documents": 2,
        "warm_start": True,
        "phases": {"count": 2, "documents": 3},
        "lora": {"rank": 2},
    }
)


def documents() -> ByteStream:
    """A stream of short documents, of which an adapted score makes batches, blocks and phases."""
    pieces = [b"one, two, one, two. " * 3, b"three", b"four and four and four and four", b"one, two, one, two. " * 2]
    starts = np.cumsum([0, *map(len, pieces[:-1])], dtype=np.int64)
    text = ByteText([np.frombuffer(b"".join(pieces), np.uint8)])
    return ByteStream(text, starts, SPEC.vocabulary, "documents", "5a" * 32)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SMALL, SMALL.model_copy(update={"reset": "document"}), DOCUMENT])
def test_the_file_has_the_bits_of_the_adapted_score(settings: AdaptationSpec) -> None:
    stream, coder = documents(), codec(settings)
    spec = coder.adapted_spec()
    proof = prove(coder, stream, score_adapted(create_scorer("mlx", spec, coder.weights), stream))
    assert proof.passed and proof.coded.nats == pytest.approx(proof.score.nats, rel=1e-5)
    plain = score_by_spec(create_scorer("mlx", SPEC, coder.weights), stream)
    assert abs(plain.nats / proof.score.nats - 1) > 1e-4


@pytest.mark.parametrize(
    ("settings", "protocol"),
    [
        (AdaptationSpec(), PLAIN),
        (COMMON_SETTINGS, COMMON),
        (SPEC.evaluation.adaptation.model_copy(update={"kind": "score_first"}), TOLD),
        (SMALL.model_copy(update={"reset": "document", "optimizer": "sgd"}), TOLD),
    ],
)
def test_a_file_knows_its_settings(settings: AdaptationSpec, protocol: int) -> None:
    content, _ = codec(settings).compress(TEXT, (0, 70, 111))
    file = parse(content, 256)
    assert file.protocol == protocol
    if file.learning is not None:
        assert file.learning.settings == settings
        assert file.learning.starts == ((0, 70, 111) if settings.reset == "document" else (0,))
    assert np.array_equal(Codec(SPEC, codec().weights, "5a" * 32).decompress(content)[0], TEXT)


def test_the_adaptation_of_the_artifact_takes_no_room() -> None:
    own = codec().adapted_spec()
    coder = Codec(own, codec().weights, "5a" * 32, "mlx")
    content, coded = coder.compress(TEXT)
    assert parse(content, 256).protocol == OWN
    assert len(content) == FIXED_BYTES + 2 + 1 + 1 + 4 + len(coded.payload)
    assert np.array_equal(coder.decompress(content)[0], TEXT)
    with pytest.raises(DataError, match="which has none"):
        replace(coder, spec=SPEC).decompress(content)


def test_defaults_are_those_of_the_format() -> None:
    """A file of protocol 2 stands for these settings for ever: other defaults need another number."""
    assert AdaptationSpec(kind="score_first") == COMMON_SETTINGS


def test_a_machine_that_learns_otherwise_is_refused_before_anything_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content, _ = codec().compress(TEXT[:64])
    monkeypatch.setattr("shared.coding.codec.decode_adapted", None)
    with pytest.raises(DataError, match="engine mlx learnt, which torch cannot"):
        codec(engine="torch").decompress(content)
    monkeypatch.setattr("shared.coding.codec.fingerprint", lambda learner: bytes(4))
    with pytest.raises(DataError, match="computes otherwise than this one"):
        codec().decompress(content)


def test_a_machine_that_does_not_learn_the_same_twice_codes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = iter([b"abcd", b"abce"])
    monkeypatch.setattr("shared.coding.codec.fingerprint", lambda learner: next(prints))
    with pytest.raises(UserError, match="does not learn the same twice"):
        codec().compress(TEXT)
    with pytest.raises(UserError, match="numpy"):
        codec(engine="numpy").compress(TEXT)


def test_a_fingerprint_is_forgotten_and_tells_weights_apart() -> None:
    with codec()._learner(SMALL, "mlx", codec()._plan(SMALL, 64, (0,))) as learner:
        before = learner.engine.export_weights("trained")
        first = adapted.fingerprint(learner)
        after = learner.engine.export_weights("trained")
        assert all(np.array_equal(before[name], after[name]) for name in before) and learner.steps == 0
        assert adapted.fingerprint(learner) == first
        learner.settings = learner.settings.model_copy(update={"epochs": 2})
        assert adapted.fingerprint(learner) != first


def test_heads_that_lie_are_refused() -> None:
    content, _ = codec(SMALL.model_copy(update={"reset": "document"})).compress(TEXT[:64], (0, 20))
    rng, refused = np.random.default_rng(0), 0
    for _ in range(400):
        wrong = bytearray(content)
        wrong[3] = 0x10 | rng.integers(0, 4)
        for at in rng.integers(FIXED_BYTES, FIXED_BYTES + 420, rng.integers(1, 4)):
            wrong[at % len(wrong)] = rng.integers(256)
        wrong[4:6] = checksum(bytes(wrong[:4] + wrong[6:]))
        try:
            parse(bytes(wrong), 256)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100
