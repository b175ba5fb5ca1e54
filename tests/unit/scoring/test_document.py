"""score.json: complete, consistent, or an error; and the end-to-end evaluation that fills it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.compressors import compressor_results
from shared.artifact import ArtifactInfo, code_bytes
from shared.engine.oracle import Oracle
from shared.errors import RunError
from shared.model import parameter_counts, random_weights
from shared.scoring.document import ScoreDocument, read_score, write_score
from shared.scoring.evaluate import evaluate, with_compressors
from shared.spec import load_spec, spec_id
from tests.datasets import full_disk
from tests.museum.fake_stream import FakeStream

SPEC = load_spec("tiny", ["model.num_layers=1", "model.seq_len=32"])
TEXT = FakeStream([f"document {index} says nothing much, {index * 7919}.\n".encode() for index in range(14)])


@pytest.fixture(scope="module")
def document() -> ScoreDocument:
    oracle = Oracle(SPEC, random_weights(SPEC, 0))
    return evaluate(oracle, TEXT, engine="numpy", weights="packed", artifact_bytes=12_345, artifact_sha256="ab" * 32)


def test_evaluation_fills_every_part(document: ScoreDocument) -> None:
    assert document.bytes == document.symbols == TEXT.num_bytes
    assert document.documents == 14
    assert document.bpb == pytest.approx(document.nats / math.log(2) / document.bytes)
    assert (document.window_symbols, document.stride_symbols, document.adaptation) == (32, 32, "none")
    assert (document.engine, document.weights, document.artifact_bytes) == ("numpy", "packed", 12_345)
    assert (document.code_bytes, document.limit_bytes) == (code_bytes("numpy", SPEC), 16_000_000)
    assert (document.spec_id, document.parameters) == (spec_id(SPEC), parameter_counts(SPEC)["total"])
    assert document.dataset.name == "fake/heldout" and document.dataset.complete
    assert document.dataset.text_sha256 == hashlib.sha256(TEXT.text_bytes()).hexdigest()
    assert document.audit.passed and [check.name for check in document.audit.checks] == [
        *("future", "target", "normalisation", "order", "positions", "coverage", "denominator", "plausibility", "size")
    ]
    assert (document.artifact_sha256, document.chosen) == ("ab" * 32, None)
    interval = document.confidence
    assert interval.low_bpb is not None and interval.high_bpb is not None
    assert interval.low_bpb < document.bpb < interval.high_bpb
    ends = f"95% confidence interval: {interval.low_bpb:.4f} to {interval.high_bpb:.4f} (14 documents, as good as 14"
    assert interval.text.startswith(ends) and document.nats_per_symbol == document.nats / document.symbols
    none = interval.model_copy(update={"low_bpb": None, "high_bpb": None})
    assert none.text == "no confidence interval: 14 documents"


def test_compressors_come_later_or_never(document: ScoreDocument, tmp_path: Path) -> None:
    """A score of a text that no dataset has figures of is whole without them, and is completed from the text."""
    assert document.compressors == {}
    write_score(tmp_path / "score.json", document)
    assert read_score(tmp_path / "score.json") == document
    assert [entry.name for entry in tmp_path.iterdir()] == ["score.json"]
    seen: list[tuple[int, int]] = []
    complete = with_compressors(document, TEXT, None, lambda done, total: seen.append((done, total)))
    assert {name: part.compressed_bytes for name, part in complete.compressors.items()} == {
        name: result.compressed_bytes for name, result in compressor_results(TEXT.text_bytes()).items()
    }
    assert complete.model_copy(update={"compressors": {}}) == document
    assert with_compressors(complete, TEXT, None, lambda done, total: pytest.fail("compressed again")) is complete


def test_a_sample_says_that_it_is_one() -> None:
    oracle = Oracle(SPEC, random_weights(SPEC, 0))
    document = evaluate(
        oracle, TEXT, engine="numpy", weights="averaged", artifact_bytes=None, stride=8, max_symbols=200
    )
    assert document.symbols <= 200 and document.stride_symbols == 8
    assert not document.dataset.complete
    assert document.dataset.sha256 == TEXT.sha256 != document.dataset.scored_sha256


def written(values: Any, tmp_path: Path) -> Path:
    path = tmp_path / "score.json"
    path.write_text(json.dumps(values))
    return path


# What files of older versions lack; they are read for ever.
NEWER_FIELDS = {"artifact_sha256", "chosen"}


@pytest.mark.parametrize("field", sorted(ScoreDocument.model_fields.keys() - NEWER_FIELDS))
def test_a_missing_part_is_an_error(document: ScoreDocument, tmp_path: Path, field: str) -> None:
    values = document.to_dict()
    del values[field]
    with pytest.raises(RunError, match=rf"score.json: {field}: field required"):
        read_score(written(values, tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bpb": 0.5}, "is not nats / ln 2 / bytes"),
        ({"artifact_bytes": None}, "artifact_bytes must be given exactly where the weights are packed"),
        ({"bytes": 0}, "bytes: must be greater than 0"),
        ({"nats": math.nan}, "it has the number NaN, which is not finite"),
        ({"adaptation": "trained on it"}, "adaptation.*: must be 'none'"),
        ({"remark": "trust me"}, "remark: extra inputs are not permitted"),
        ({"audit": {"passed": True, "checks": []}}, "audit.checks: list should have at least 1 item"),
        ({"artifact_sha256": "short"}, "artifact_sha256: string should match pattern"),
        ({"weights": "averaged", "artifact_bytes": None}, "artifact_sha256 must be null unless the weights are packed"),
        (
            {"weights": "best", "artifact_bytes": None, "artifact_sha256": None},
            "chosen must be given where the weights are the best",
        ),
    ],
)
def test_an_inconsistent_document_is_an_error(
    document: ScoreDocument, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        read_score(written({**document.to_dict(), **change}, tmp_path))


def test_a_score_of_an_older_version_is_read(document: ScoreDocument, tmp_path: Path) -> None:
    values = {name: value for name, value in document.to_dict().items() if name not in NEWER_FIELDS}
    old = read_score(written(values, tmp_path))
    assert old == document.model_copy(update={"artifact_sha256": None})
    info = ArtifactInfo(12_345, 100, 10, {}, document.spec_id, "cd" * 32)
    assert old.is_of(info) and not document.is_of(info)
    assert document.is_of(replace(info, sha256="ab" * 32))
    assert not document.is_of(replace(info, sha256="ab" * 32, artifact_bytes=12_346))
    assert not old.is_of(replace(info, artifact_bytes=12_346))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot read the score"):
        read_score(tmp_path / "score.json")
    (tmp_path / "score.json").write_text("{")
    with pytest.raises(RunError, match="it is not JSON"):
        read_score(tmp_path / "score.json")


def test_a_failed_write_leaves_the_old_score(
    document: ScoreDocument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "score.json"
    write_score(path, document)
    before = path.read_bytes()

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_score(path, document)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["score.json"]
