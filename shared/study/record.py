"""A record: finished runs of one spec that differ in the seed only, as a folder that can be handed in.

README.md           what it is, the scores per seed with mean and deviation, how to make it again, the machine
submission.json     the same figures under the field names of the public parameter-golf records
spec.toml           the resolved spec of the first seed
train.py            trains that spec and scores, by itself (shared.script): the code that is counted
score.py            scores an artifact, by itself
seedN/              of each run: spec, artifact, score, environment, metrics, report and, if any, preflight

A record is made of files that exist: nothing is trained or scored for it. Only its two scripts are made for it.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.engine.registry import ENGINES
from shared.errors import RunError
from shared.files import recover_folder, replacing_folder
from shared.runs.finished_run import FinishedRun
from shared.script.build import scoring_script, training_script
from shared.spec import spec_id, spec_to_toml
from shared.spec.difference import FREE_IN_RECORD, SEED_KEY, first_difference
from shared.study.groups import SUBMISSION_FILE
from shared.study.significance import Significance

PREFLIGHT_FILE = "preflight.json"
TRAIN_SCRIPT, SCORE_SCRIPT = "train.py", "score.py"
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
class Author:
    """Who hands a record in; what was not given is None."""

    name: str | None = None
    github_id: str | None = None


def check_one_experiment(results: Sequence[FinishedRun]) -> None:
    """Raise RunError unless every two runs differ in training.seed and in nothing else."""
    first = results[0]
    seeds: dict[int, FinishedRun] = {}
    for result in results:
        found = first_difference(first.spec, result.spec, FREE_IN_RECORD)
        if found is not None:
            raise RunError(
                f"{first.path} has {found.key} = {found.first!r}, {result.path} has {found.second!r}: "
                f"the runs of a record differ in {SEED_KEY} only"
            )
        if result.train_text != first.train_text:
            raise RunError(
                f"{first.path} was trained on {first.spec.data.train} with sha256 {first.train_text[:16]}, "
                f"{result.path} on {result.spec.data.train} with {result.train_text[:16]}: "
                f"the runs of a record differ in {SEED_KEY} only"
            )
        if result.seed in seeds:
            raise RunError(f"{seeds[result.seed].path} and {result.path} have the same seed {result.seed}")
        if result.score.dataset.scored_sha256 != first.score.dataset.scored_sha256:
            raise RunError(f"{first.path} and {result.path} were scored on different text")
        seeds[result.seed] = result


def trained_on(results: Sequence[FinishedRun]) -> str:
    """The engine that trained the first run. Raises RunError if there is no such engine."""
    first = results[0]
    engine = str(first.environment.get("engine", first.score.engine))
    if engine not in ENGINES:
        raise RunError(f"{first.directory.environment_path}: engine {engine!r}; engines: {', '.join(ENGINES)}")
    return engine


def scripts(results: Sequence[FinishedRun]) -> dict[str, bytes]:
    """The self-contained scripts of a record by file name, on the engine that trained its first run."""
    first, engine = results[0], trained_on(results)
    return {
        TRAIN_SCRIPT: training_script(engine, first.spec),
        SCORE_SCRIPT: scoring_script(engine, first.spec),
    }


def over_budget(results: Sequence[FinishedRun], code_bytes: int) -> list[str]:
    """Which artifacts do not fit together with this code, one line each."""
    return [
        f"{result.path}: budget: {result.artifact_bytes:,} artifact + {code_bytes:,} code of the record, the limit is "
        f"{result.score.limit_bytes:,}"
        for result in results
        if result.artifact_bytes + code_bytes > result.score.limit_bytes
    ]


def submission(
    results: Sequence[FinishedRun],
    code_bytes: int,
    title: str,
    blurb: str,
    author: Author,
    against: Significance | None = None,
) -> dict[str, Any]:
    """submission.json. Scores are means over the seeds, deviations have ddof = 1 and are null for one seed,
    bytes are those of the largest. `val_loss` is in nats per symbol, a byte or a token; `code_bytes` are those of the
    record's own script, whatever was counted when the runs were scored.
    `against` is there only if the record was compared with another."""
    bpb = [result.score.bpb for result in results]
    loss = [result.score.nats_per_symbol for result in results]
    artifact = [result.artifact_bytes for result in results]
    train_s = [result.train_s for result in results]
    packages = results[0].environment.get("packages", {})
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
        "seed_results": {str(result.seed): _seed_entry(result, code_bytes) for result in results},
        "bytes_total": max(artifact) + code_bytes,
        "bytes_code": code_bytes,
        "artifact_bytes_mean": statistics.fmean(artifact),
        "artifact_bytes_max": max(artifact),
        "train_steps_mean": statistics.fmean(result.steps for result in results),
        "train_time_s_mean": statistics.fmean(train_s),
        "eval_stride": results[0].score.stride_symbols,
        "hardware": "; ".join(sorted({result.device for result in results})),
        "engine": "; ".join(sorted({result.score.engine for result in results})),
        "pytorch_version": packages.get("torch") if results[0].score.engine == "torch" else None,
        "spec_id": spec_id(results[0].spec),
        "compliance": {
            "artifact_under_16mb": max(artifact) + code_bytes <= LIMIT_BYTES,
            "train_under_600s": max(train_s) <= LIMIT_S,
            "audit_passed": all(result.score.audit.passed for result in results),
            "all_heldout_text": all(result.score.dataset.complete for result in results),
            "three_seeds": len(results) >= FEWEST_SEEDS,
        },
        **({} if against is None else {"against": against.to_document()}),
    }


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with ddof = 1 (docs/techniques.md 1.6), None for one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def write_record(
    folder: Path,
    results: Sequence[FinishedRun],
    readme: str,
    document: Mapping[str, Any],
    code: Mapping[str, bytes],
    *,
    replace: bool,
) -> None:
    """Write the whole folder, `code` its scripts, or nothing: made next to it under a temporary name, then renamed.

    Raises RunError if there is a folder already, unless `replace` and it is a record.
    """
    recover_folder(folder)
    if folder.exists() and not replace:
        raise RunError(f"{folder} exists; --replace overwrites it, --output names another folder")
    if folder.exists() and not (folder / SUBMISSION_FILE).is_file():
        raise RunError(f"{folder} exists and is not a record (it has no {SUBMISSION_FILE}): it is not replaced")
    with replacing_folder(folder) as temporary:
        _fill(temporary, results, readme, document, code)


def _fill(
    folder: Path,
    results: Sequence[FinishedRun],
    readme: str,
    document: Mapping[str, Any],
    code: Mapping[str, bytes],
) -> None:
    texts = {
        "README.md": readme,
        SUBMISSION_FILE: json.dumps(document, indent=2, allow_nan=False) + "\n",
        "spec.toml": spec_to_toml(results[0].spec),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, script in code.items():
        (folder / name).write_bytes(script)
    for result in results:
        target = folder / f"seed{result.seed}"
        target.mkdir()
        for name in KEPT_FILES:
            if (result.path / name).exists():
                shutil.copyfile(result.path / name, target / name)


def _seed_entry(result: FinishedRun, code_bytes: int) -> dict[str, Any]:
    steps, train_s = result.steps, result.train_s
    return {
        "val_bpb": result.score.bpb,
        "val_loss": result.score.nats_per_symbol,
        "artifact_bytes": result.artifact_bytes,
        "bytes_total": result.artifact_bytes + code_bytes,
        "steps": steps,
        "train_time_s": train_s,
        "step_avg_ms": 1000.0 * train_s / steps,
    }
