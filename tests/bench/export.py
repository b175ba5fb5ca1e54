"""Exports a run for transformers and MLX, and measures both with the real packages: `pip install -e .[mlx,cuda,hf]
lm-eval==0.4.13`, then

    python -m tests.bench.export RUN DATASET

Logits on held-out text against the engines, and what lm-eval says of the text of `bytetwin score RUN --data DATASET
--stride WINDOW`, window by window and document by document. The text must be ASCII, because lm-eval reads strings and a
window of bytes may cut a character. One JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from data.datasets import open_split
from data.stream import SymbolStream
from shared.engine.package import create_scorer
from shared.export.folder import write_export
from shared.runs.target import Target, load_trained
from shared.scoring.bits_per_byte import score_stream
from shared.spec import with_overrides


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("dataset")
    parser.add_argument("--documents", type=int, default=8, help="documents for lm-eval on its own; default 8")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    target = load_trained(args.run)
    stream = open_split(args.dataset, "heldout", target.spec.vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        write_export(target, "hf", Path(folder, "hf"))
        write_export(target, "mlx", Path(folder, "mlx"))
        document = {
            "logits": logits(target, stream, Path(folder)),
            "lm_eval": lm_eval_figures(target, stream, Path(folder, "hf"), args.documents),
        }
    print(json.dumps(document, indent=2))


def logits(target: Target, stream: SymbolStream, folder: Path) -> dict[str, float]:
    """Largest difference of any log-probability of two windows, to the engines and the oracle."""
    import torch
    from transformers import AutoModelForCausalLM

    # Prepares the process for MLX.
    import_module("mlx_train")
    spec, length = with_overrides(target.spec, ["training.compile=false"]), target.spec.model.seq_len
    x = np.stack([stream.read(start, length) for start in (0, length)]).astype(np.int32)
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", trust_remote_code=True)
    ids = torch.cat([torch.full((2, 1), spec.vocabulary.size), torch.tensor(x[:, :-1]).long()], dim=1)
    with torch.no_grad():
        found = {"hf": model(ids).logits[..., :-1].numpy()}
    sys.path.insert(0, str(folder / "mlx"))
    plain = import_module("model")
    found["mlx folder"] = np.array(plain.load(folder / "mlx")(plain.mx.array(x)))
    expected = {name: create_scorer(name, spec, target.weights).log_probs(x) for name in ("torch", "mlx", "numpy")}
    return {
        f"{form} - {engine}": float(np.abs(ours - theirs).max())
        for form, ours in found.items()
        for engine, theirs in expected.items()
    }


def lm_eval_figures(target: Target, stream: SymbolStream, folder: Path, count: int) -> dict[str, Any]:
    """Bits per byte of lm-eval and of bytetwin: the whole text in windows, and single documents."""
    length = target.spec.model.seq_len
    scorer = create_scorer("torch", with_overrides(target.spec, ["training.compile=false"]), target.weights)
    text = stream.text_bytes().decode("ascii")
    windows = [text[start : start + length] for start in range(0, len(text), length)]
    score = score_stream(scorer, stream, seq_len=length, stride=length, batch_rows=8, confidence=0.95)
    documents = sorted((bytes(one).decode("ascii") for one in stream.documents()), key=len)
    short = [one for one in documents if len(one) <= length][-count:]
    long = [one for one in documents if len(one) > length][:count]
    figures: dict[str, Any] = {"text in windows": {"bytetwin": score.bpb, "lm-eval": rolling(folder, windows)}}
    for name, chosen in (("documents of a window at most", short), ("longer documents", long)):
        own = sum(nats_of(scorer, one.encode(), length) for one in chosen) / math.log(2) / sum(map(len, chosen))
        figures[name] = {"documents": len(chosen), "bytetwin": own, "lm-eval": rolling(folder, chosen)}
    for pair in figures.values():
        pair["difference"] = pair["lm-eval"] - pair["bytetwin"]
    return figures


def nats_of(scorer: Any, document: bytes, length: int) -> float:
    """Nats of a document that is alone in its windows."""
    total = 0.0
    for start in range(0, len(document), length):
        part = np.frombuffer(document[start : start + length], np.uint8)
        x = np.zeros((1, length), np.int32)
        x[0, : len(part)] = part
        total += float(scorer.score(x)[0, : len(part)].astype(np.float64).sum())
    return total


def rolling(folder: Path, texts: Sequence[str]) -> float:
    """Bits per byte of lm-eval's loglikelihood_rolling over texts."""
    import lm_eval

    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = {
        "task": "texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    options = f"pretrained={folder},trust_remote_code=True,dtype=float32"
    found = lm_eval.simple_evaluate(
        model="hf", model_args=options, tasks=[task], batch_size=8, device="cpu", bootstrap_iters=0
    )
    return float(found["results"]["texts"]["bits_per_byte,none"])


if __name__ == "__main__":
    main()
