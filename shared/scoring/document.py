"""The score document: bits per byte with everything needed to interpret it (docs/techniques.md 1.7)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data.compressors import CompressorResult
from shared.artifact import ArtifactInfo
from shared.errors import RunError, problem_text
from shared.files import check_regular, write_atomically
from shared.parsing import parse_json
from shared.spec.adaptation import AdaptationSpec

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]

# Whose weights are scored: the artifact's, the last checkpoint's (averaged or as trained), those of the checkpoint that
# was best on held-out text, or random ones of an untrained spec.
WeightsName = Literal["packed", "averaged", "trained", "best", "random"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DatasetPart(_Part):
    """The text: dataset and split, `sha256` of the whole split, `scored_sha256` of what was scored of it, which is the
    same if `complete`. Both are of symbols and document starts; `text_sha256` is of the scored text's bytes, the same
    for bytes and for tokens that decode to them."""

    name: Annotated[str, Field(min_length=1)]
    sha256: Sha256
    scored_sha256: Sha256
    text_sha256: Sha256
    complete: bool


class ConfidencePart(_Part):
    """The interval of `shared.scoring.confidence`: its ends are null where the documents are too few for one, and
    `reason` says so. Scores written before `effective_units` existed lack it, and may be of windows."""

    level: Number
    low_bpb: Number | None
    high_bpb: Number | None
    units: Literal["documents", "windows"]
    num_units: Count
    effective_units: Number | None = None
    reason: str | None = None

    @property
    def text(self) -> str:
        """`95% confidence interval: 2.09 to 2.18 (99 documents, as good as 36 of equal length)`, or why there is
        none."""
        counted = f"{self.num_units:,} {self.units}"
        if self.low_bpb is None or self.high_bpb is None:
            return f"no confidence interval: {self.reason or counted}"
        if self.effective_units is not None:
            counted += f", as good as {self.effective_units:.0f} of equal length"
        return f"{self.level:.0%} confidence interval: {self.low_bpb:.4f} to {self.high_bpb:.4f} ({counted})"


class CheckPart(_Part):
    """One check of the audit; `measured` is null where it is not a number."""

    name: str
    passed: bool
    measured: Number | None
    limit: Number
    detail: str
    warning: bool


class AuditPart(_Part):
    passed: bool
    checks: Annotated[list[CheckPart], Field(min_length=1)]


class CompressorPart(_Part):
    """A general compressor on the same text."""

    compressed_bytes: Count
    bpb: Number


class ChosenPart(_Part):
    """Weights that were chosen among those of a run by their score on held-out text: of `step`, which had `bpb` bits
    per byte on a sample of `dataset`. A score on that text is too good by the choice."""

    step: Count
    bpb: Number
    dataset: Annotated[str, Field(min_length=1)]

    def __str__(self) -> str:
        return (
            f"the weights of step {self.step}, chosen by held-out text of {self.dataset} ({self.bpb:.4f} bits per byte "
            "on a sample), which makes a score on that text optimistic"
        )


class JournalLine(_Part):
    """`scored` [start, stop) was scored, then `learnt` was learnt by `what`: `times` over, each time `advance` symbols
    further on."""

    scored: Annotated[list[Count], Field(min_length=2, max_length=2)]
    learnt: Annotated[list[Count], Field(min_length=2, max_length=2)]
    what: Annotated[str, Field(min_length=1)]
    times: Annotated[int, Field(gt=0)]
    advance: Count


class AdaptationPart(_Part):
    """How the model learnt from scored text: the settings, which determine it, and the journal of what it did."""

    settings: AdaptationSpec
    journal: list[JournalLine]

    @model_validator(mode="after")
    def _in_order(self) -> AdaptationPart:
        first, last = math.inf, 0
        for number, line in enumerate(self.journal):
            first, last = min(first, line.scored[0]), max(last, line.scored[1])
            if not (first <= line.learnt[0] <= line.learnt[1] <= last):
                raise ValueError(f"line {number} of the journal learns {line.learnt}, which was not scored before")
            if line.learnt[1] > line.scored[1] and line.times > 1:
                raise ValueError(f"line {number} of the journal learns beyond what it scores each time")
            last = max(last, line.scored[1] + (line.times - 1) * line.advance)
        return self

    def __str__(self) -> str:
        chosen = self.settings
        what = f"factors of rank {chosen.lora.rank}" if chosen.lora.rank else ", ".join(chosen.parameters)
        epochs = "once" if chosen.epochs == 1 else f"{chosen.epochs} times"
        chunks = f"chunks of {chosen.chunk_symbols:,} {epochs}"
        return f"{chosen.kind} ({what} by {chosen.optimizer} at {chosen.rate:g}, {chunks})"


class ScoreDocument(_Part):
    """score.json. A score that lacks a part is refused; a field has a default only if older files lack it.

    `bpb` = nats / ln 2 / bytes; `adaptation` is how the model learns from scored text, `none` for a fixed
    predictor; `artifact_bytes` and `artifact_sha256` are null unless the weights were packed, the
    hash in old files too; `chosen` is null unless held-out text chose the weights. `compressors` is empty until the
    text was compressed, which a score does not wait for.
    """

    bpb: Number
    nats: Number
    symbols: Count
    bytes: Annotated[int, Field(gt=0)]
    documents: Count
    window_symbols: Count
    stride_symbols: Count
    adaptation: Literal["none"] | AdaptationPart
    confidence: ConfidencePart
    dataset: DatasetPart
    compressors: dict[str, CompressorPart]
    audit: AuditPart
    artifact_bytes: Count | None
    artifact_sha256: Sha256 | None = None
    code_bytes: Count
    limit_bytes: Count
    parameters: Count
    spec_name: str
    spec_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    engine: Annotated[str, Field(min_length=1)]
    weights: WeightsName
    chosen: ChosenPart | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ScoreDocument:
        implied = self.nats / math.log(2.0) / self.bytes
        if not math.isclose(self.bpb, implied, rel_tol=1e-9, abs_tol=1e-12):
            raise ValueError(f"bpb {self.bpb} is not nats / ln 2 / bytes, which is {implied}")
        if (self.weights == "packed") != (self.artifact_bytes is not None):
            raise ValueError("artifact_bytes must be given exactly where the weights are packed")
        if self.weights != "packed" and self.artifact_sha256 is not None:
            raise ValueError("artifact_sha256 must be null unless the weights are packed")
        if self.weights == "best" and self.chosen is None:
            raise ValueError("chosen must be given where the weights are the best")
        if self.dataset.complete != (self.dataset.sha256 == self.dataset.scored_sha256):
            raise ValueError("a complete dataset and a sample of it must differ in their hashes")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self.model_dump(mode="json")

    @property
    def total_bytes(self) -> int:
        """Artifact and code together."""
        return (self.artifact_bytes or 0) + self.code_bytes

    @property
    def nats_per_symbol(self) -> float:
        """Mean over the scored symbols."""
        return self.nats / self.symbols

    @property
    def problems(self) -> list[str]:
        """Why the score does not count, one line each that begins with `audit: ` or `budget: `."""
        found = [f"audit: {check.name}: {check.detail}" for check in self.audit.checks if not check.passed]
        if self.total_bytes > self.limit_bytes:
            found.append(
                f"budget: {self.artifact_bytes or 0:,} artifact + {self.code_bytes:,} code = {self.total_bytes:,} "
                f"bytes, the limit is {self.limit_bytes:,}"
            )
        return found

    @property
    def windows_text(self) -> str:
        """`windows of 64 by 32 symbols, adaptation none`: how the text was read."""
        return f"windows of {self.window_symbols} by {self.stride_symbols} symbols, adaptation {self.adaptation}"

    def protocol(self) -> dict[str, Any]:
        """The text and protocol in which two scores must agree to be comparable. `text_sha256` is of the bytes, so that
        tokens may be compared with bytes; windows are in symbols of the model's own vocabulary."""
        return {
            "dataset": self.dataset.name,
            "text_sha256": self.dataset.text_sha256,
            "window_symbols": self.window_symbols,
            "stride_symbols": self.stride_symbols,
            "adaptation": "none" if self.adaptation == "none" else self.adaptation.settings.model_dump(mode="json"),
            "weights": self.weights,
        }

    def is_of(self, artifact: ArtifactInfo) -> bool:
        """Whether this is the score of that artifact, by its size alone where an old score has no hash."""
        same_hash = self.artifact_sha256 in (None, artifact.sha256)
        return same_hash and self.artifact_bytes == artifact.artifact_bytes

    def with_compressors(self, results: Mapping[str, CompressorResult]) -> ScoreDocument:
        """The document with the figures of general compressors on the scored text."""
        parts = {name: CompressorPart(**asdict(result)) for name, result in results.items()}
        return self.model_copy(update={"compressors": parts})


def write_score(path: Path, document: ScoreDocument) -> None:
    """Write score.json, whole or not at all."""
    write_atomically(path, json.dumps(document.to_dict(), indent=2, allow_nan=False).encode() + b"\n")


def read_score(path: Path) -> ScoreDocument:
    """Read score.json back. Raises RunError if it cannot be read, or a part is missing or wrong."""
    try:
        check_regular(path)
        values = parse_json(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot read the score ({(error.strerror or str(error)).lower()})") from None
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    return validated_score(values, str(path))


def validated_score(values: Any, origin: str) -> ScoreDocument:
    """The document of plain values. Raises RunError naming `origin` if one is missing or wrong."""
    try:
        return ScoreDocument.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "document"
        raise RunError(f"{origin}: {where}: {problem_text(problem['msg'])}") from None
