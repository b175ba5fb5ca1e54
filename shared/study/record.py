"""A record: finished runs of one spec that differ in the seed only, as a folder that can be handed in.

README.md           what it is, the scores per seed with mean and deviation, how to make it again, the machine
submission.json     the same figures under the field names of the public parameter-golf records
spec.toml           the resolved spec of the first seed
seedN/              of each run: spec, artifact, score, environment, metrics, report and, if any, preflight

A record is made of files that exist: nothing is trained or scored for it.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.artifact import read_artifact
from shared.errors import ArtifactError, DataError, RunError
from shared.files import sync_folder
from shared.runs.metrics import Record, last_ending, read_records
from shared.runs.run_directory import RunDirectory
from shared.scoring.document import ScoreDocument, read_score
from shared.spec import Spec, spec_id, spec_to_toml
from shared.spec.difference import FREE_IN_RECORD, SEED_KEY, first_difference
from shared.training.sources import open_training_text

PREFLIGHT_FILE = "preflight.json"
SUBMISSION_FILE = "submission.json"
KEPT_FILES = (
    "spec.toml",
    "artifact.btw",
    "score.json",
    "documents.safetensors",
    "environment.json",
    "metrics.jsonl",
    "report.html",
    PREFLIGHT_FILE,
)
# What the public records promise (docs/techniques.md 1.1).
LIMIT_BYTES, LIMIT_S, FEWEST_SEEDS = 16_000_000, 600.0, 3


@dataclass(frozen=True)
class SeedResult:
    """A finished run, read back. `last_step` is the metrics record of the last optimizer step, `finished` that of
    the score; `preflight` the document of the check before it, if the run has one."""

    run: RunDirectory
    spec: Spec
    score: ScoreDocument
    environment: Mapping[str, Any]
    last_step: Record
    finished: Record
    preflight: Mapping[str, Any] | None

    @property
    def seed(self) -> int:
        return self.spec.training.seed

    @property
    def artifact_bytes(self) -> int:
        assert self.score.artifact_bytes is not None
        return self.score.artifact_bytes

    @property
    def total_bytes(self) -> int:
        """Artifact and code together."""
        return self.artifact_bytes + self.score.code_bytes

    @property
    def loss_nats(self) -> float:
        """Mean nats per scored symbol."""
        return self.score.nats / self.score.symbols

    @property
    def train_text(self) -> str:
        """SHA-256 of the text that was trained on. Raises RunError if environment.json does not tell it."""
        return self.run.read_train_text()

    @property
    def hardware(self) -> str:
        """The device in words, and how many of them."""
        return str(self.environment.get("device", "unknown device"))

    @property
    def ranks(self) -> int:
        """The number of processes that trained together."""
        return int(self.environment.get("ranks", 1))


@dataclass(frozen=True)
class Author:
    """Who hands a record in; what was not given is None."""

    name: str | None = None
    github_id: str | None = None


def read_result(run: RunDirectory) -> SeedResult:
    """What a finished run says of itself.

    Raises RunError if it is not finished, or its score is not that of its artifact.
    """
    spec = run.read_spec()
    records = read_records(run.metrics_path)
    steps = [record for record in records if record["event"] == "step"]
    ending = last_ending(records)
    if not steps or ending is None or not run.score_path.exists():
        raise RunError(f"{run.path}: not finished, so it is no record yet; continue it with --run {run.name} --resume")
    info = read_artifact(run.artifact_path).info
    score = read_score(run.score_path)
    if info.spec_id != spec_id(spec) or not score.is_of(info):
        raise RunError(
            f"{run.score_path}: the score is not that of {run.artifact_path.name}, which was packed again; mend it "
            f"with `bytetwin pack {run.path}` and, if that says so, `bytetwin score {run.path}`"
        )
    preflight = run.path / PREFLIGHT_FILE
    return SeedResult(
        run,
        spec,
        score,
        _read_json(run.environment_path),
        steps[-1],
        ending,
        _read_json(preflight) if preflight.exists() else None,
    )


def finished_with(run: RunDirectory, spec: Spec) -> SeedResult | None:
    """The result of a run that has been trained, packed and scored with exactly this spec, None for any other.

    Raises RunError if the text that the spec names has changed since.
    """
    if not run.spec_path.is_file() or not run.score_path.exists() or run.read_spec() != spec:
        return None
    try:
        result = read_result(run)
    except (RunError, ArtifactError):
        return None
    try:
        now = open_training_text(spec).sha256
    except DataError:
        # Without the text no run can be trained on anything else under this name.
        return result
    if now != result.train_text:
        raise RunError(
            f"{run.path} was trained on {spec.data.train} when its sha256 was {result.train_text[:16]}, now it is "
            f"{now[:16]}: train under another name, or remove {run.path} to train it again"
        )
    return result


def check_one_experiment(results: Sequence[SeedResult]) -> None:
    """Raise RunError unless the runs differ in training.seed, in that certainly, and in nothing else."""
    first = results[0]
    seeds: dict[int, SeedResult] = {}
    for result in results:
        found = first_difference(first.spec, result.spec, FREE_IN_RECORD)
        if found is not None:
            raise RunError(
                f"{first.run.path} has {found.key} = {found.first!r}, {result.run.path} has {found.second!r}: "
                f"the runs of a record differ in {SEED_KEY} only"
            )
        if result.train_text != first.train_text:
            raise RunError(
                f"{first.run.path} was trained on {first.spec.data.train} with sha256 {first.train_text[:16]}, "
                f"{result.run.path} on {result.spec.data.train} with {result.train_text[:16]}: "
                f"the runs of a record differ in {SEED_KEY} only"
            )
        if result.seed in seeds:
            raise RunError(f"{seeds[result.seed].run.path} and {result.run.path} have the same seed {result.seed}")
        if result.score.dataset.scored_sha256 != first.score.dataset.scored_sha256:
            raise RunError(f"{first.run.path} and {result.run.path} were scored on different text")
        seeds[result.seed] = result


def refusals(results: Sequence[SeedResult]) -> list[str]:
    """Why these runs are no record, one line each: over the budget of bytes, or a failed audit."""
    found = []
    for result in results:
        score, where = result.score, result.run.path
        if result.total_bytes > score.limit_bytes:
            found.append(
                f"{where}: {result.artifact_bytes:,} artifact + {score.code_bytes:,} code = {result.total_bytes:,} "
                f"bytes, the limit is {score.limit_bytes:,}"
            )
        found += [f"{where}: audit: {check.name}: {check.detail}" for check in score.audit.checks if not check.passed]
    return found


def submission(results: Sequence[SeedResult], title: str, blurb: str, author: Author) -> dict[str, Any]:
    """submission.json. Scores are means over the seeds, deviations have ddof = 1 and are null for one seed,
    bytes are those of the largest. `val_loss` is in nats per symbol, a byte or a token."""
    bpb = [result.score.bpb for result in results]
    loss = [result.loss_nats for result in results]
    artifact = [result.artifact_bytes for result in results]
    train_s = [float(result.last_step["elapsed_s"]) for result in results]
    bytes_total = max(result.total_bytes for result in results)
    return {
        "author": author.name,
        "github_id": author.github_id,
        "name": title,
        "blurb": blurb,
        "date": max(str(result.environment.get("started", "")) for result in results)[:10],
        "val_loss": statistics.fmean(loss),
        "val_loss_std": deviation(loss),
        "val_bpb": statistics.fmean(bpb),
        "val_bpb_std": deviation(bpb),
        "seeds": [result.seed for result in results],
        "seed_results": {str(result.seed): _seed_entry(result) for result in results},
        "bytes_total": bytes_total,
        "bytes_code": max(result.score.code_bytes for result in results),
        "artifact_bytes_mean": statistics.fmean(artifact),
        "artifact_bytes_max": max(artifact),
        "train_steps_mean": statistics.fmean(result.last_step["step"] for result in results),
        "train_time_s_mean": statistics.fmean(train_s),
        "eval_stride": results[0].score.stride_symbols,
        "hardware": "; ".join(sorted({result.hardware for result in results})),
        "engine": "; ".join(sorted({result.score.engine for result in results})),
        "pytorch_version": _torch_version(results[0]),
        "spec_id": spec_id(results[0].spec),
        "compliance": {
            "artifact_under_16mb": bytes_total <= LIMIT_BYTES,
            "train_under_600s": max(train_s) <= LIMIT_S,
            "audit_passed": all(result.score.audit.passed for result in results),
            "all_heldout_text": all(result.score.dataset.complete for result in results),
            "three_seeds": len(results) >= FEWEST_SEEDS,
        },
    }


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with ddof = 1 (docs/techniques.md 1.6), None for one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def write_record(
    folder: Path, results: Sequence[SeedResult], readme: str, document: Mapping[str, Any], *, replace: bool
) -> None:
    """The whole folder or nothing: made beside its place under a temporary name, then renamed.

    Raises RunError if there is a folder already, unless `replace` and it is a record.
    """
    if folder.exists() and not replace:
        raise RunError(f"{folder} exists; --replace writes it anew, --out names another folder")
    if folder.exists() and not (folder / SUBMISSION_FILE).is_file():
        raise RunError(f"{folder} exists and is no record (it has no {SUBMISSION_FILE}): it is not replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(leftover)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        _fill(temporary, results, readme, document)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _fill(folder: Path, results: Sequence[SeedResult], readme: str, document: Mapping[str, Any]) -> None:
    folder.mkdir()
    texts = {
        "README.md": readme,
        SUBMISSION_FILE: json.dumps(document, indent=2, allow_nan=False) + "\n",
        "spec.toml": spec_to_toml(results[0].spec),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for result in results:
        target = folder / f"seed{result.seed}"
        target.mkdir()
        for name in KEPT_FILES:
            if (result.run.path / name).exists():
                shutil.copyfile(result.run.path / name, target / name)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _seed_entry(result: SeedResult) -> dict[str, Any]:
    steps, train_s = int(result.last_step["step"]), float(result.last_step["elapsed_s"])
    return {
        "val_bpb": result.score.bpb,
        "val_loss": result.loss_nats,
        "artifact_bytes": result.artifact_bytes,
        "bytes_total": result.total_bytes,
        "steps": steps,
        "train_time_s": train_s,
        "step_avg_ms": 1000.0 * train_s / steps,
    }


def _torch_version(result: SeedResult) -> str | None:
    """The version of torch, None for a run on another engine."""
    packages = result.environment.get("packages", {})
    return packages.get("torch") if result.score.engine == "torch" else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise RunError(f"{path}: not valid JSON") from None
    if not isinstance(values, dict):
        raise RunError(f"{path}: not a JSON object")
    return values
