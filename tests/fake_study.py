"""Finished runs for tests of comparisons: made up in memory, or copies of one real run with other figures."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as tensors_from_bytes

from shared.scoring.documents import DocumentScores, write_document_scores
from shared.spec import load_spec, spec_to_toml, with_overrides
from shared.study.scored_run import ScoredRun, TextProtocol

PROTOCOL = TextProtocol("toy/heldout", "ab" * 32, 64, 32, "none", "packed")
SIZES = np.full(20, 50, np.int64)


def documents(bpb: float, wobble: float = 0.0) -> DocumentScores:
    """Twenty documents of 50 bytes; every second one is worse by `wobble`, the others better."""
    signs = np.where(np.arange(20) % 2 == 0, 1.0, -1.0)
    return DocumentScores((bpb + wobble * signs) * SIZES * math.log(2.0), SIZES)


def scored_run(name: str, seed: int, bpb: float, **changes: Any) -> ScoredRun:
    """A finished run on 1000 bytes; `fields` in `changes` are spec fields beside the batch size."""
    fields = {"training.batch_symbols": 512, **changes.pop("fields", {"model.variant": name})}
    values: dict[str, Any] = {
        "path": Path(f"runs/{name}-seed{seed}"),
        "spec_name": name,
        "fields": fields,
        "train_name": "toy",
        "train_text": "ef" * 32,
        "seed": seed,
        "engine": "mlx",
        "device": "a device",
        "protocol": PROTOCOL,
        "bpb": bpb,
        "nats": bpb * 1000 * math.log(2.0),
        "symbols": 1000,
        "bytes": 1000,
        "parameters": 10,
        "total_bytes": 100,
        "limit_bytes": 1000,
        "steps": 100,
        "train_s": 50.0,
        "timed": False,
        "audit_failures": (),
        "documents": documents(bpb),
    }
    return ScoredRun(**{**values, **changes})


def edit_json(path: Path, **changes: Any) -> None:
    """Replace some values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def copy_run(source: Path, target: Path, *overrides: str, factor: float = 1.0) -> Path:
    """A copy of a finished run as another seed or spec would have left it, all nats multiplied by `factor`."""
    shutil.copytree(source, target)
    spec = with_overrides(load_spec(target / "spec.toml"), overrides)
    (target / "spec.toml").write_text(spec_to_toml(spec))
    score = json.loads((target / "score.json").read_text())
    edit_json(target / "score.json", bpb=score["bpb"] * factor, nats=score["nats"] * factor)
    path = target / "documents.safetensors"
    tensors = tensors_from_bytes(path.read_bytes())
    write_document_scores(path, DocumentScores(tensors["nats"] * factor, tensors["bytes"]))
    return target
