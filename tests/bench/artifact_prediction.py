"""How well the size of an artifact is predicted before training: the experiment behind the calibration.

    python -m tests.bench.artifact_prediction train [NAME...] [--runs-dir DIR] [--engine E]   trains the grid below
    python -m tests.bench.artifact_prediction measure RUN...    packs finished runs (any), adds them to the data
    python -m tests.bench.artifact_prediction fit               writes shared/artifact/predict_calibration.py
    python -m tests.bench.artifact_prediction check             predicted against packed, for every model

The data lies beside this file: for each model its spec, its steps, what the codes of every role cost and the
size of the packed file at int6 and int8. A model whose name starts with `v-` is never fitted, only checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from shared.artifact import entropy_bits, quantise, unpack_bytes
from shared.artifact.codec import compress_blocks
from shared.artifact.container import pack_bytes
from shared.artifact.quantise import storage_of, storages_of
from shared.files import write_atomically
from shared.model.manifest import parameter_manifest
from shared.quantisers import Float32
from shared.runs.checkpoints import CheckpointStore
from shared.runs.target import load_trained
from shared.spec import Spec, load_spec, spec_to_dict, with_overrides
from shared.training.run import train_run
from shared.views.plain import PlainObserver
from tests.bench.artifact_fit import fit, fitted, prediction_errors, roles_of, write_calibration

DATA = Path(__file__).with_suffix(".json")
MATRIX_BITS = (6, 8)

_SHAPE = "model.num_layers={} model.model_dim={} model.patch_size={} training.steps={} training.batch_symbols={}"
_COMMON = "model.seq_len=256 evaluation.stride_symbols=256 training.compile=false training.val_every_steps=0"
_DECODER = "model.decoder.dim={} model.decoder.num_heads={} model.decoder.mlp_dim={} model.decoder.context={}"


def _grid(shape: tuple[int, ...], decoder: tuple[int, ...] | str, matrix_lr: float, more: str = "") -> list[str]:
    """Overrides of the tiny preset: layers, width, patch, steps, batch; a local decoder or the kind of another."""
    local = decoder if isinstance(decoder, str) else _DECODER.format(*decoder)
    batch = f"training.micro_batch_symbols={shape[4]} evaluation.batch_symbols={shape[4]}"
    return f"{_SHAPE.format(*shape)} {_COMMON} {batch} {local} optimizer.matrix_lr={matrix_lr} {more}".split()


LINEAR, MLP = "model.decoder.kind=linear", "model.decoder.kind=mlp model.decoder.dim={}"
GRID: dict[str, list[str]] = {
    "d32-p4": _grid((3, 32, 4, 200, 512), (16, 2, 32, 1), 0.04),
    "d64-p4": _grid((3, 64, 4, 400, 1024), (32, 2, 64, 1), 0.02),
    "d64-p4-long": _grid((3, 64, 4, 4000, 1024), (32, 2, 64, 4), 0.03),
    "d64-p4-b8k": _grid((3, 64, 4, 200, 8192), (32, 2, 64, 4), 0.04),
    "d32-p4-long": _grid((3, 32, 4, 5000, 1024), (32, 2, 64, 8), 0.06),
    "d128-p4": _grid((4, 128, 4, 300, 2048), (64, 2, 192, 4), 0.03),
    "d384-p4": _grid((3, 384, 4, 60, 2048), (192, 4, 576, 8), 0.04),
    "d64-p1": _grid((4, 64, 1, 600, 1024), LINEAR, 0.02),
    "d128-p1-long": _grid((3, 128, 1, 600, 1024), LINEAR, 0.03),
    "d128-mlp8": _grid((4, 128, 8, 300, 2048), MLP.format(64), 0.02),
    "d128-mlp4-long": _grid((3, 128, 4, 600, 1024), MLP.format(64), 0.04),
    "d128-lin4": _grid((3, 128, 4, 500, 2048), LINEAR, 0.04),
    "d128-lin4-enwiki": _grid((3, 128, 4, 300, 1024), LINEAR, 0.03, "data.train=enwiki"),
    "d256-lin8": _grid((3, 256, 8, 120, 4096), LINEAR, 0.02),
    "v-d160-p4": _grid((5, 160, 4, 250, 2048), (96, 2, 256, 4), 0.03),
    "v-d224-mlp8": _grid((3, 224, 8, 300, 4096), MLP.format(96), 0.02),
    "v-d96-p2": _grid((6, 96, 2, 500, 1024), (64, 2, 128, 6), 0.04),
    "v-d288-lin4": _grid((3, 288, 4, 120, 2048), LINEAR, 0.03),
    "v-d128-p1": _grid((8, 128, 1, 200, 1024), LINEAR, 0.02),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "measure", "fit", "check"))
    parser.add_argument("names", nargs="*", help="models of the grid, or runs to measure")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--engine", default="mlx")
    args = parser.parse_args()
    if args.action == "train":
        for name in args.names or GRID:
            train(name, args.engine, args.runs_dir)
    elif args.action == "measure":
        for source in args.names:
            add_measurement(source)
    elif args.action == "fit":
        write_calibration(fitted(read_data()))
    else:
        check(read_data())


def train(name: str, engine: str, runs_dir: Path) -> None:
    """Train one model of the grid as a run of its name; a finished one is left alone."""
    spec = load_spec("tiny", GRID[name])
    with PlainObserver(Console(file=sys.stderr)) as observer:
        train_run(spec, engine, observer, runs_dir=runs_dir, run_name=name, resume=True, finish=False)


def add_measurement(source: str) -> None:
    """Measure the averaged weights of a run's last checkpoint and add them to the data, replacing its name."""
    target = load_trained(source, "averaged")
    assert target.run is not None, f"{source} is not a run"
    loaded = CheckpointStore(target.run.checkpoints_path, target.spec.training.keep_checkpoints).load_latest()
    assert loaded is not None
    row = measurement(target.run.name, target.spec, loaded.info.step, target.weights)
    rows = [old for old in read_data() if old["name"] != row["name"]] + [row]
    write_data(rows)
    print(f"{row['name']}: {row['artifact_bytes']}")


def measurement(name: str, spec: Spec, steps: int, weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One model as plain JSON: real packed sizes, and what each role costs at the spec's own widths."""
    row: dict[str, Any] = {"name": name, "steps": steps, "spec": spec_to_dict(spec), "artifact_bytes": {}}
    for bits in MATRIX_BITS:
        content = pack_bytes(with_overrides(spec, [f"artifact.matrix.bits={bits}"]), weights)
        row["artifact_bytes"][str(bits)] = len(content)
        info = unpack_bytes(content).info
        if bits == spec.artifact.matrix.bits:
            row["sections"] = info.section_bytes
    row["excess_bits"] = excess_by_role(spec, weights)
    return row


def excess_by_role(spec: Spec, weights: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Bits per weight above Gaussian codes: entropies for matrices, brotli's own size for tables and heads,
    where whole rows repeat."""
    tensors = quantise(weights, storages_of(parameter_manifest(spec), spec.artifact))
    found = {}
    for role, parameters in roles_of(spec).items():
        codes: list[Any] = [tensors[parameter.name].parts["codes"] for parameter in parameters]
        count = sum(array.size for array in codes)
        if parameters[0].quantisation == "matrix":
            bits = sum(entropy_bits(array) * array.size for array in codes)
        else:
            raw = b"".join(array.tobytes() for array in codes)
            bits = 8 * sum(map(len, compress_blocks(raw, spec.artifact.brotli_quality, spec.artifact.brotli_window)))
        coded = storage_of(parameters[0], spec.artifact)
        assert not isinstance(coded, Float32)
        found[role] = bits / count - coded.gaussian_code_bits(parameters[0].shape[-1])
    return found


def check(rows: list[dict[str, Any]]) -> None:
    """Print the error of every model: left out of the fit in turn, or never in it."""
    whole = fitted(rows)
    for row in rows:
        kept = [other for other in rows if other is not row and not other["name"].startswith("v-")]
        calibration = whole if row["name"].startswith("v-") else fit(kept)
        if row["excess_bits"].keys() <= calibration.roles.keys():
            shown = "  ".join(
                f"int{bits} {100 * error:+.2f} %" for bits, error in prediction_errors(row, calibration).items()
            )
            print(f"{row['name']:22} {row['steps']:6} steps  {row['artifact_bytes']}  {shown}")


def read_data() -> list[dict[str, Any]]:
    """All measured models."""
    rows: list[dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else []
    return rows


def write_data(rows: list[dict[str, Any]]) -> None:
    """Replace the data: one model per line."""
    lines = ",\n".join(json.dumps(row, sort_keys=True) for row in sorted(rows, key=lambda row: row["name"]))
    write_atomically(DATA, f"[\n{lines}\n]\n".encode("ascii"))


if __name__ == "__main__":
    main()
