"""A coded text comes back on every engine; whatever is not that text is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from data.datasets import open_split
from shared import tolerances
from shared.coding import streams
from shared.coding.codec import Codec
from shared.coding.coder import decode, encode
from shared.coding.container import CHECK_BYTES, FIXED_BYTES, SUM_BYTES, checksum, parse
from shared.coding.intervals import MOST_TOLERANCE, cumulative, interval_bits
from shared.coding.proof import prove
from shared.coding.streams import Streams
from shared.coding.text import bytes_of, symbols_of
from shared.engine.package import create_float64_scorer, create_scorer
from shared.engine.protocol import Scorer, Stepper
from shared.errors import DataError, UserError
from shared.model import random_weights
from shared.model.logits import TEMPERATURE
from shared.runs.target import load_trained
from shared.scoring.bits_per_byte import score_by_spec
from shared.spec import Spec, load_spec
from shared.tolerances import CODING_CUMULATIVE_ABS
from tests import ROOT

GOLDEN_FILES = ROOT / "tests" / "golden" / "2026-11-26"
SHA256 = "5a" * 32
SMALL = ["model.num_layers=1", "model.seq_len=32", "evaluation.stride_symbols=12", "model.patch_size=4"]
TEXT = b"A scorer is a coder, and a coder is a scorer. \x00\xff\n" * 3


@cache
def spec_of(*overrides: str) -> Spec:
    return load_spec("tiny", [*SMALL, *overrides])


def codec(engine: str = "numpy", *overrides: str) -> Codec:
    spec = spec_of(*overrides)
    return Codec(spec, random_weights(spec, 3), SHA256, engine)


@pytest.fixture(autouse=True)
def _many_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SYMBOLS_PER_STREAM", 40)


@pytest.mark.parametrize("vocabulary", ["byte256", "byte260"])
@pytest.mark.parametrize("size", [0, 1, 31, 33, len(TEXT)])
def test_bytes_come_back(vocabulary: str, size: int) -> None:
    coder = codec("numpy", f"vocabulary.kind={vocabulary}")
    symbols = symbols_of(coder.spec.vocabulary, TEXT[:size], "text")
    assert len(symbols) == size + (size > 0 and vocabulary == "byte260")
    content, coded = coder.compress(symbols)
    again, text = coder.decompress(content)
    assert text == TEXT[:size] and np.array_equal(again, symbols)
    assert abs(8 * len(coded.payload) - coded.nats / np.log(2)) <= 8 + coded.escapes * coded.escape_bits + 0.01 * size


class Off:
    """A stepper whose probabilities of all symbols before any other are off by as much."""

    def __init__(self, inner: Stepper, error: float) -> None:
        self.inner, self.error = inner, error

    def start(self, known: np.ndarray) -> np.ndarray:
        return self.moved(self.inner.start(known))

    def advance(self, symbols: np.ndarray) -> np.ndarray:
        return self.moved(self.inner.advance(symbols))

    def moved(self, log_probs: np.ndarray) -> np.ndarray:
        probs = np.exp(log_probs)
        probs[:, 0] += self.error
        probs[:, -1] -= self.error
        return np.log(probs)


@pytest.mark.parametrize("share", [-0.9, 0.9])
def test_escapes_are_read_as_they_were_written(share: float) -> None:
    """With the widest tolerance every fourth symbol needs one, and the decoder may be off by all of it."""
    scorer = create_float64_scorer("numpy", spec_of(), random_weights(spec_of(), 3))
    symbols, cut = np.frombuffer(TEXT, np.uint8).astype(np.int32), Streams(len(TEXT), 3, 32, 12)
    tolerance = MOST_TOLERANCE / (1 << interval_bits(256))
    coded = encode(scorer, symbols, cut, tolerance)
    assert len(TEXT) / 6 < coded.escapes < len(TEXT) / 3
    assert 8 * len(coded.payload) == pytest.approx(coded.nats / np.log(2) + 8 * coded.escape_bytes, rel=0.01)
    other = cast(Scorer, SimpleNamespace(stepper=lambda rows: Off(scorer.stepper(rows), share * tolerance)))
    assert np.array_equal(decode(other, coded.payload, cut), symbols)
    with pytest.raises(AssertionError):
        encode(scorer, symbols, cut, 1.01 * tolerance)


@pytest.mark.parametrize(("writer", "reader"), [("torch", "numpy"), ("numpy", "mlx"), ("mlx", "torch")])
def test_what_one_engine_wrote_another_reads(writer: str, reader: str) -> None:
    symbols = symbols_of(codec().spec.vocabulary, TEXT[:60], "text")
    content, _ = codec(writer).compress(symbols)
    assert content == codec(reader).compress(symbols)[0]
    assert codec(reader).decompress(content)[1] == TEXT[:60]


@pytest.mark.parametrize("size", range(0, 200, 7))
def test_streams_hold_every_symbol_once(size: int) -> None:
    cut = Streams(size, max(1, min(size, 5)), 32, 12)
    assert sum(cut.lengths) == size and sorted(cut.lengths, reverse=True) == cut.lengths
    symbols = np.arange(1, size + 1, dtype=np.int32)
    rows = cut.cut(symbols)
    assert np.array_equal(np.concatenate([row[:n] for row, n in zip(rows, cut.lengths, strict=True)]), symbols)


def test_tokens_come_back_document_by_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYTETWIN_DATASETS", str(GOLDEN_FILES / "datasets"))
    target = load_trained(str(GOLDEN_FILES / "tokens" / "artifact.btw"))
    assert target.artifact_sha256 is not None
    coder = Codec(target.spec, target.weights, target.artifact_sha256, "numpy")
    stream = open_split("golden-tokens", "heldout", target.spec.vocabulary).sample_documents(120, 0)
    assert stream.num_documents > 1
    proof = prove(coder, stream, score_by_spec(create_scorer("numpy", target.spec, target.weights), stream))
    assert proof.verified and proof.text_bytes == stream.num_bytes
    text = b" two  spaces\n\tand \xe2\x96\x81 marks"
    symbols = symbols_of(target.spec.vocabulary, text, "text")
    assert bytes_of(target.spec.vocabulary, symbols) == text
    with pytest.raises(UserError, match="not UTF-8 at byte 2"):
        symbols_of(target.spec.vocabulary, b"ab\xff", "text")
    for wrong in ([5, 6], [1, 5, 2], [1, 0]):
        with pytest.raises(DataError):
            bytes_of(target.spec.vocabulary, np.array(wrong, np.int32))


FORMS: list[list[str]] = [
    [],
    [
        "vocabulary.kind=byte260",
        "model.attention.document_mask=true",
        "model.attention.window=3",
        "model.attention.output_gate=attn_out",
    ],
    ["model.mixers=['mamba2']", "model.decoder.kind=experts"],
    ["model.mixers=['gated_delta']", "model.smear_gate=v1", "vocabulary.kind=byte260"],
    ["artifact.logits=temperature"],
]


@pytest.mark.parametrize("engine", ["torch", "mlx"])
@pytest.mark.parametrize("overrides", FORMS, ids=lambda overrides: " ".join(overrides) or "plain")
def test_float64_engines_agree_with_the_oracle_far_below_the_tolerance(engine: str, overrides: list[str]) -> None:
    spec = spec_of(*overrides)
    weights = random_weights(spec, 1)
    if spec.artifact.logits == "temperature":
        # A cold one: all but one of the probabilities are tiny, and their sum must be exact.
        weights |= {TEMPERATURE: np.array([0.05], np.float32)}
    x = np.random.default_rng(0).integers(4, 256, (2, 32)).astype(np.int32)
    x[:, 9] = spec.vocabulary.document_start or 0
    oracle, other = (create_float64_scorer(name, spec, weights) for name in ("numpy", engine))
    expected, found = (cumulative(each.log_probs(x)) for each in (oracle, other))
    assert np.abs(found - expected).max() < CODING_CUMULATIVE_ABS / 10
    assert np.abs(oracle.score(x) - other.score(x)).max() < 1e-12


def test_another_artifact_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content, _ = codec().compress(np.frombuffer(TEXT[:20], np.uint8).astype(np.int32))
    other = replace(codec(), artifact_sha256="b6" * 32)
    monkeypatch.setattr("shared.coding.codec.decode", None)
    with pytest.raises(DataError, match=r"5a5a5a5a5a5a.* this one is b6b6b6b6b6b6"):
        other.decompress(content)


def test_a_machine_that_computes_otherwise_writes_nothing() -> None:
    """Weights that differ in their last bits stand for another machine."""
    content, _ = codec().compress(np.frombuffer(TEXT, np.uint8).astype(np.int32))
    rounded = {name: value * np.float64(1.0 + 1e-5) for name, value in codec().weights.items()}
    with pytest.raises(DataError, match="does not match its check"):
        replace(codec(), weights=rounded).decompress(content)


def test_damage_is_found_even_under_a_checksum_that_is_right() -> None:
    content, _ = codec().compress(np.frombuffer(TEXT[:10], np.uint8).astype(np.int32))
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 4
        with pytest.raises(DataError):
            codec().decompress(bytes(damaged))
        if at >= 4 + SUM_BYTES:
            damaged[4:6] = checksum(bytes(damaged[:4] + damaged[6:]))
            with pytest.raises(DataError):
                codec().decompress(bytes(damaged))
    cut = bytearray(content[:FIXED_BYTES])
    cut[4:6] = checksum(bytes(cut[:4] + cut[6:]))
    with pytest.raises(DataError, match=f"truncated: {FIXED_BYTES} bytes, its head needs {FIXED_BYTES + 1}"):
        codec().decompress(bytes(cut))
    for wrong in (b"", b"BT", content[:-1], content + b"\0", content[: FIXED_BYTES - 1]):
        with pytest.raises(DataError):
            codec().decompress(wrong)


def test_a_file_cannot_claim_more_symbols_than_its_payload_holds() -> None:
    content, _ = codec().compress(np.zeros(8, np.int32))
    assert parse(content, 256).num_symbols == 8
    claim = bytearray(content)
    claim[FIXED_BYTES : FIXED_BYTES + 1] = b"\xff\xff\xff\x7f"
    claim[4:6] = checksum(bytes(claim[:4] + claim[6:]))
    with pytest.raises(DataError, match="cannot hold as many"):
        parse(bytes(claim), 256)


def test_a_model_that_multiplies_rounding_gets_a_wider_tolerance_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = codec()
    symbols = np.frombuffer(TEXT[:32], np.uint8).astype(np.int32)
    assert plain._tolerance(symbols) == CODING_CUMULATIVE_ABS
    wild = {name: value * (1e5 if "embed" in name else 1.0) for name, value in plain.weights.items()}
    sharp = replace(plain, weights=wild)
    assert sharp._tolerance(symbols) > CODING_CUMULATIVE_ABS
    assert sharp.decompress(sharp.compress(symbols)[0])[1] == TEXT[:32]
    monkeypatch.setattr(tolerances, "CODING_OVER_ROUNDING", 1e9)
    with pytest.raises(UserError, match="multiplies rounding"):
        sharp.compress(symbols)


def test_a_proof_says_no_where_the_score_is_another() -> None:
    coder = codec()
    stream = open_split("builtin", "heldout", coder.spec.vocabulary).sample_documents(60, 0)
    score = score_by_spec(create_scorer("numpy", coder.spec, coder.weights), stream)
    proof = prove(coder, stream, score)
    assert proof.verified and proof.passed and proof.head_bytes == FIXED_BYTES + 2
    assert not replace(proof, score=replace(score, nats=score.nats / 2)).passed
    assert not replace(proof, score=replace(score, nats=score.nats * 1.5)).passed
    assert not replace(proof, verified=False).passed
    assert CHECK_BYTES == 8
