"""The range coder beside brotli-11 and the order-0 entropy, on codes of trained runs; and its speed on 36 M codes.

    python -m tests.bench.range_codec RUN ...      bits a weight: row max int6, and one step for each tensor
    python -m tests.bench.range_codec --speed      seconds to encode and decode 137 matrices of 512 by 512

`entropy` is of all codes of a section together, `by tensor` the mean of the tensors' own. The last column is the factor
of shared/artifact/predict.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shared.artifact.budget import entropy_bits
from shared.artifact.codec import compress_blocks
from shared.artifact.quantise import storages_of
from shared.artifact.range_codec import CodedShape, decode, encode
from shared.model.manifest import parameter_manifest
from shared.quantisers import Float32, RowMax
from shared.runs.target import load_trained

STEPS = (0.15, 0.3, 0.6)

Codes = NDArray[np.int8]


def sections(run: str) -> Iterator[tuple[str, list[Codes]]]:
    """Names and code matrices: of every class as packed, and of the matrices with one step for a tensor."""
    target = load_trained(run, "averaged")
    manifest = parameter_manifest(target.spec)
    storages = storages_of(manifest, target.spec.artifact)
    classes: dict[str, list[Codes]] = {}
    uniform: dict[float, list[Codes]] = {step: [] for step in STEPS}
    for parameter in manifest:
        if isinstance(storages[parameter.name], Float32):
            continue
        rows = target.weights[parameter.name].reshape(-1, parameter.shape[-1])
        packed = RowMax(storages[parameter.name].bits)
        classes.setdefault(f"{parameter.quantisation} int{packed.bits}", []).append(packed.encode(rows)["codes"])
        if parameter.quantisation == "matrix":
            rms = float(np.sqrt(np.mean(np.square(rows, dtype=np.float64))))
            for step in STEPS:
                uniform[step].append(np.clip(np.round(rows / (step * rms)), -127, 127).astype(np.int8))
    yield from classes.items()
    for step, matrices in uniform.items():
        yield f"matrix step {step}", matrices


def compare(run: str) -> None:
    """Print a row of the table for each section of a run."""
    for name, matrices in sections(run):
        flat = np.concatenate([codes.reshape(-1) for codes in matrices])
        by_tensor = sum(entropy_bits(codes) * codes.size for codes in matrices) / flat.size
        brotli = 8 * sum(map(len, compress_blocks(flat.tobytes(), 11, 24))) / flat.size
        ours = 8 * len(encode(matrices, [0] * len(matrices))) / flat.size
        entropy = f"{entropy_bits(flat):7.4f} | {by_tensor:9.4f}"
        print(
            f"| {run} | {name:16} | {flat.size:10,} | {entropy} | {brotli:7.4f} | {ours:7.4f} | {ours / brotli:.4f} |"
        )


def measure_speed(states: int) -> None:
    """Encode and decode 36 M codes of Gaussian mixtures whose rows and columns differ."""
    rng = np.random.default_rng(0)
    matrices = []
    for _ in range(137):
        scale = np.exp2(rng.normal(0, 0.4, (512, 1)) + rng.normal(0, 0.2, 512)) * rng.choice([1.0, 2.0], (512, 512))
        matrices.append(np.clip(np.round(rng.standard_normal((512, 512)) * scale * 3), -127, 127).astype(np.int8))
    begin = time.perf_counter()
    stream = encode(matrices, [states] * len(matrices))
    encoded = time.perf_counter()
    decoded = decode(stream, [CodedShape(512, 512, states)] * len(matrices))
    end = time.perf_counter()
    assert all(np.array_equal(left, right) for left, right in zip(matrices, decoded, strict=True))
    size = sum(codes.size for codes in matrices)
    print(f"{states} states: {size:,} codes, {8 * len(stream) / size:.4f} bits; ", end="")
    print(f"encoding {encoded - begin:.1f} s, decoding {end - encoded:.1f} s")


def main() -> None:
    """Parse the command line and print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    if arguments.runs:
        print("| run | codes | weights | entropy | by tensor | brotli | range | range / brotli |")
        print("|---|---|---|---|---|---|---|---|")
    for run in arguments.runs:
        compare(run)
    for states in (0, 8) if arguments.speed else ():
        measure_speed(states)


if __name__ == "__main__":
    main()
