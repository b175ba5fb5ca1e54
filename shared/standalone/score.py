"""A script that scores an artifact: bits per byte of a text under the protocol of the artifact's own spec."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.byte_stream import ByteStream, ByteText
from data.folders import ROOT_VARIABLE
from data.manifest import FILE_NAME
from data.opening import open_existing
from data.stream import SymbolStream
from shared.artifact import read_artifact
from shared.engine.package import create_scorer
from shared.errors import DataError
from shared.scoring.adaptation import score_adapted
from shared.scoring.bits_per_byte import score_by_spec
from shared.scoring.windows import check_window
from shared.spec import Spec, spec_id
from shared.standalone.program import guarded, say


def main(words: Sequence[str], engine: str, spec: str = "") -> int:
    """Score as the command line says, by default on `engine`; prints one JSON document. `spec` is not needed: the
    artifact has its own."""
    parser = argparse.ArgumentParser(description="Score a packed model, in bits per byte.")
    parser.add_argument("artifact", type=Path, help="a .btw file")
    parser.add_argument(
        "--data", metavar="DATASET|FILE", help="a dataset by name or folder, or a file of text; default: the spec's"
    )
    parser.add_argument("--stride", type=int, metavar="SYMBOLS", help="default: the spec's")
    parser.add_argument("--engine", choices=sorted({engine, "numpy"}), default=engine, help="default %(default)s")
    args = parser.parse_args(words)
    return guarded(lambda: score(args.artifact, args.engine, args.data, args.stride))


def score(path: Path, engine: str, data: str | None, stride: int | None) -> int:
    """Print the score of an artifact. Raises UserError if it or the text cannot be used."""
    artifact = read_artifact(path)
    spec = artifact.spec
    stream = open_text(data or spec.data.heldout, spec)
    check_window(spec.model.seq_len, stream.num_symbols)
    say(f"scoring {path} on {stream.name}, {stream.num_bytes:,} bytes")
    adaptation = spec.evaluation.adaptation
    score_text = score_adapted if adaptation.is_on else score_by_spec
    found = score_text(create_scorer(engine, spec, dict(artifact.weights)), stream, stride=stride)
    document = {
        "bpb": found.bpb,
        "low_bpb": found.confidence.low_bpb,
        "high_bpb": found.confidence.high_bpb,
        "nats": found.nats,
        "symbols": found.symbols,
        "bytes": found.bytes,
        "documents": found.documents,
        "window_symbols": found.seq_len,
        "stride_symbols": found.stride,
        "adaptation": adaptation.model_dump(mode="json") if adaptation.is_on else "none",
        "dataset": {"name": stream.name, "sha256": stream.sha256},
        "artifact_bytes": artifact.info.artifact_bytes,
        "artifact_sha256": artifact.info.sha256,
        "engine": engine,
        "spec_name": spec.name,
        "spec_id": spec_id(spec),
    }
    print(json.dumps(document, indent=2), flush=True)
    return 0


def open_text(data: str, spec: Spec) -> SymbolStream:
    """The held-out part of a dataset, or a file of bytes as one document. Raises DataError."""
    path = Path(data)
    if (path / FILE_NAME).is_file():
        os.environ[ROOT_VARIABLE] = str(path.resolve().parent)
        return open_existing(path.resolve().name, "heldout", spec.vocabulary)
    if not path.is_file():
        return open_existing(data, "heldout", spec.vocabulary)
    if spec.vocabulary.reads_tokens:
        raise DataError(f"{path}: the model reads tokens, so the text must be a dataset of its tokenizer")
    text = np.fromfile(path, np.uint8)
    if not text.size:
        raise DataError(f"{path}: no text to score")
    digest = hashlib.sha256(text.tobytes()).hexdigest()
    return ByteStream(ByteText([text]), np.zeros(1, np.int64), spec.vocabulary, str(path), digest)
