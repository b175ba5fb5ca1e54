"""Finished runs for tests of comparisons: synthetic ones in memory, or copies of one real run with other figures."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as tensors_from_bytes

from shared.model import parameter_counts
from shared.runs.finished_run import FinishedRun
from shared.runs.metrics import Event, read_events
from shared.runs.run_directory import RunDirectory
from shared.scoring.document import ScoreDocument
from shared.scoring.documents import DocumentScores, write_document_scores
from shared.spec import Spec, load_spec, spec_id, spec_to_toml, with_overrides

SIZES = np.full(20, 50, np.int64)


def documents(bpb: float, wobble: float = 0.0) -> DocumentScores:
    """Twenty documents of 50 bytes; every second one is worse by `wobble`, the others better."""
    signs = np.where(np.arange(20) % 2 == 0, 1.0, -1.0)
    return DocumentScores((bpb + wobble * signs) * SIZES * math.log(2.0), SIZES)


def score_of(spec: Spec, **changes: Any) -> ScoreDocument:
    """A score of 2.5 bits per byte on 10,000 bytes."""
    check = {"name": "future", "passed": True, "measured": 1.5e-7, "limit": 1e-4, "detail": "moved", "warning": False}
    values = {
        "bpb": 2.5,
        "nats": 2.5 * 10_000 * math.log(2.0),
        "symbols": 10_000,
        "bytes": 10_000,
        "documents": 12,
        "window_symbols": 64,
        "stride_symbols": 32,
        "adaptation": "none",
        "confidence": {"level": 0.95, "low_bpb": 2.4123, "high_bpb": 2.5877, "units": "documents", "num_units": 12},
        "dataset": {
            "name": "text/heldout",
            "sha256": "a" * 64,
            "scored_sha256": "a" * 64,
            "text_sha256": "c" * 64,
            "complete": True,
        },
        "compressors": {
            "xz -9": {"compressed_bytes": 4100, "bpb": 3.28},
            "zstd -19": {"compressed_bytes": 4000, "bpb": 3.2},
            "brotli -11": {"compressed_bytes": 3900, "bpb": 3.12},
        },
        "audit": {"passed": True, "checks": [check]},
        "artifact_bytes": 123_456,
        "code_bytes": 234_567,
        "limit_bytes": 16_000_000,
        "parameters": parameter_counts(spec)["total"],
        "spec_name": spec.name,
        "spec_id": spec_id(spec),
        "engine": "mlx",
        "weights": "packed",
        **changes,
    }
    return ScoreDocument.model_validate(values)


@cache
def spec_of(*overrides: str) -> Spec:
    return load_spec("tiny", overrides)


def finished_run(
    name: str,
    seed: int,
    bpb: float,
    *overrides: str,
    path: str = "",
    train_text: str = "ef" * 32,
    train_s: float = 50.0,
    **score: Any,
) -> FinishedRun:
    """A finished run on 1000 bytes of 20 documents. Its experiment is another one for another `name`, a field of its
    spec; `score` has other values of its score."""
    spec = with_overrides(spec_of("data.train=toy", f"data.heldout='{name}'", *overrides), [f"training.seed={seed}"])
    sizes = {"symbols": 1000, "bytes": 1000, "parameters": 10, "code_bytes": 40, "artifact_bytes": 60}
    nats = bpb * 1000 * math.log(2.0)
    environment = {"device": "a device", "data": {"train": {"sha256": train_text}}}
    return FinishedRun(
        RunDirectory(Path(path or f"runs/{name}-seed{seed}")),
        spec,
        environment,
        [{"event": "step", "step": 100, "elapsed_s": train_s}],
        score_of(spec, bpb=bpb, nats=nats, limit_bytes=1000, **sizes).model_copy(update=score),
        documents(bpb),
    )


def with_score(run: FinishedRun, **changes: Any) -> FinishedRun:
    """The run with other values of its score."""
    return replace(run, score=run.score.model_copy(update=changes))


def read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def events_of(folder: Path, *names: str) -> list[Event]:
    """Events of these names in the metrics of a run."""
    return [event for event in read_events(folder / "metrics.jsonl") if event["event"] in names]


@contextmanager
def edited(path: Path) -> Iterator[dict[str, Any]]:
    """The values of a JSON file, which are written back as they are left."""
    values = read_json(path)
    yield values
    path.write_text(json.dumps(values))


def copy_run(source: Path, target: Path, *overrides: str, factor: float = 1.0) -> Path:
    """A copy of a finished run as another seed or spec would have left it, all nats multiplied by `factor`."""
    shutil.copytree(source, target)
    spec = with_overrides(load_spec(target / "spec.toml"), overrides)
    (target / "spec.toml").write_text(spec_to_toml(spec))
    with edited(target / "score.json") as score:
        score.update(bpb=score["bpb"] * factor, nats=score["nats"] * factor)
    path = target / "documents.safetensors"
    tensors = tensors_from_bytes(path.read_bytes())
    write_document_scores(path, DocumentScores(tensors["nats"] * factor, tensors["bytes"]))
    return target
