"""Fills 16,000,000 bytes with synthetic weights of the preset h100: where it ends, and how long it takes.

    python -m tests.bench.fill_h100 [--engine E] [--minutes M]
    python -m tests.bench.fill_h100 --pack pr1855    another preset, packed as it says, but without calibration

Weights have the deviations of initial ones, a spread of rows and columns and heavier tails than Gaussian ones (t with 6
degrees of freedom). The text is random bytes, so the sensitivities are those of no real model.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
from numpy.typing import NDArray

from shared.artifact import code_bytes, pack_bytes, unpack_bytes
from shared.artifact.fill_model import Model
from shared.artifact.fill_search import methods_of, search
from shared.artifact.sensitivity import Divergence
from shared.engine.package import available_engines, make_scorer_of
from shared.model import parameter_manifest, random_weights
from shared.quantisers import InputStatistics
from shared.spec import Spec, load_spec


def synthetic(spec: Spec) -> dict[str, NDArray[np.float32]]:
    """The weights."""
    rng = np.random.default_rng(0)
    weights = random_weights(spec, 0)
    for parameter in parameter_manifest(spec):
        if parameter.quantisation != "control" and len(parameter.shape) == 2:
            rows, columns = parameter.shape
            tails = rng.standard_t(6, (rows, columns)) / math.sqrt(columns)
            spread = np.exp(0.2 * rng.standard_normal((rows, 1)) + 0.2 * rng.standard_normal((1, columns)))
            weights[parameter.name] = (tails * spread).astype(np.float32)
    return weights


def pack(spec: Spec) -> None:
    """Pack with no statistics, so that every tensor is rounded to its nearest codes, read back, and print."""
    weights, statistics = synthetic(spec), {each.name: InputStatistics() for each in parameter_manifest(spec)}
    begin, cpu = time.monotonic(), time.process_time()
    content = pack_bytes(spec, weights, None, statistics)
    packed = time.monotonic(), time.process_time()
    unpack_bytes(content)
    print(f"{spec.name}, {sum(map(np.size, weights.values())):,} weights: {len(content):,} bytes", end="; ")
    print(f"packed in {packed[0] - begin:.1f} s, {packed[1] - cpu:.1f} s of CPU", end="; ")
    print(f"unpacked in {time.monotonic() - packed[0]:.1f} s, {time.process_time() - packed[1]:.1f} s of CPU")


def main() -> None:
    """Fill and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default=available_engines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--pack", metavar="SPEC")
    args = parser.parse_args()
    if args.pack:
        pack(load_spec(args.pack))
        return
    spec = load_spec("h100", ["training.compile=false"])
    begin = time.monotonic()
    weights = synthetic(spec)
    limit = spec.budget.total_bytes - code_bytes(args.engine, spec)
    windows = np.random.default_rng(1).integers(0, 256, (1, spec.model.seq_len)).astype(np.int32)
    divergence = Divergence(make_scorer_of(args.engine, spec), weights, windows)
    statistics = {each.name: InputStatistics() for each in parameter_manifest(spec)}
    model = Model(spec, weights, methods_of(spec, statistics, keep=False), statistics)
    said = ""

    def progress(done: int, total: int, what: str) -> None:
        nonlocal said
        if what != said:
            print(f"{time.monotonic() - begin:7.1f} s, {time.process_time():7.1f} s of CPU: {what}", flush=True)
            said = what

    found = search(model, divergence, limit, None, 60 * args.minutes, progress)
    size = found.filled.artifact_bytes
    total = size + spec.budget.total_bytes - limit
    print(f"{sum(map(np.size, weights.values())):,} weights: {size:,} bytes, {total:,} with code")
    print(f"predicted {found.filled.predicted_nats:.4f} nats per symbol, together {found.together_nats:.4f}")
    print(f"{found.encodings} encodings, {time.monotonic() - begin:.0f} s, {time.process_time():.0f} s of CPU")
    begin = time.monotonic()
    unpack_bytes(found.filled.content)
    print(f"unpacked in {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main()
