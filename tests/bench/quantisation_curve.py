"""Bytes against loss of the quantisation methods on trained runs, for records/.

    python -m tests.bench.quantisation_curve RUN... [--text openwebtext] [--symbols 65536] [--windows 64]

For every method: bits per weight of all matrices under the range codec, scales and exponents included, and the mean
KL divergence of the packed model from the float one, in bits per byte, beside the difference of the losses, which is
noisier. Tables stay as they are. Calibration is on random windows of the run's training text.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from data.opening import open_existing
from shared.artifact import range_codec
from shared.artifact.curvature import loss_curvature
from shared.artifact.statistics import input_statistics
from shared.engine.package import create_engine, make_ops
from shared.model import model_weights, parameter_manifest
from shared.quantisers import InputStatistics, Quantiser, RowMax, SdClip, Uniform
from shared.quantisers.two_sided import factors_of
from shared.runs.target import load_trained

Weights = Mapping[str, np.ndarray]
ENGINE = "mlx"


class Model:
    """A run's averaged weights with their statistics, and its predictions on a held-out text."""

    def __init__(self, run: str, text: str, symbols: int, windows: int) -> None:
        target = load_trained(run, "averaged")
        self.spec, self.weights = target.spec, dict(model_weights(target.spec, target.weights))
        self.names = [
            each.name
            for each in parameter_manifest(self.spec)
            if each.quantisation == "matrix" and len(each.shape) == 2
        ]
        self.size = sum(self.weights[name].size for name in self.names)
        self.engine = create_engine(ENGINE, self.spec)
        self.statistics = self._calibrate(windows)
        length = self.spec.model.seq_len
        stream = open_existing(text, "heldout", self.spec.vocabulary)
        count = min(symbols, stream.num_symbols) // length
        self.heldout = stream.read(0, count * length).astype(np.int32).reshape(count, length)
        self.reference = self._log_probs(self.weights)

    def _calibrate(self, windows: int) -> dict[str, InputStatistics]:
        length = self.spec.model.seq_len
        text = open_existing(self.spec.data.train, "train", self.spec.vocabulary)
        starts = np.random.default_rng(7).integers(0, text.num_symbols - length, windows)
        x = [text.read(int(start), length).astype(np.int32)[None] for start in starts]
        found = input_statistics(make_ops(ENGINE), self.spec, self.weights, x)
        self.engine.initialise(self.weights)
        curvature = loss_curvature(self.engine.gradients, self.names, x)
        return {name: replace(found[name], curvature=curvature[name]) for name in self.names}

    def _log_probs(self, weights: Weights) -> list[np.ndarray]:
        self.engine.initialise(weights)
        return [self.engine.log_probs(self.heldout[row : row + 8]) for row in range(0, len(self.heldout), 8)]

    def cost(self, changed: Weights) -> tuple[float, float]:
        """(KL divergence, difference of losses) in bits per symbol."""
        divergence = difference = 0.0
        packed = self._log_probs({**self.weights, **changed})
        for index, (p, q) in enumerate(zip(self.reference, packed, strict=True)):
            divergence += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
            x = self.heldout[8 * index : 8 * index + 8, :, None]
            difference += float(np.take_along_axis(p - q, x, 2).sum(dtype=np.float64))
        scale = 1 / (self.heldout.size * math.log(2))
        return divergence * scale, difference * scale


def methods(model: Model) -> Iterator[tuple[str, dict[str, Quantiser]]]:
    """Each method of the curve with the quantiser of every matrix."""

    def alike(quantiser: Quantiser) -> dict[str, Quantiser]:
        return dict.fromkeys(model.names, quantiser)

    for bits in (6, 5, 4):
        yield f"row max int{bits}", alike(RowMax(bits))
        yield f"row max int{bits}, gptq", alike(RowMax(bits, "gptq"))
    for bits, clip_sd in ((6, 12.85), (5, 12.85), (5, 6.0), (4, 6.0)):
        yield f"sd clip int{bits} k {clip_sd}, gptq", alike(SdClip(bits, "gptq", clip_sd, 0.0))
    for step in (0.15, 0.3, 0.6):
        yield f"uniform {step} rms, gptq", alike(Uniform(step, "gptq"))
        yield f"uniform {step} rms, gptq, trellis", alike(Uniform(step, "gptq", trellis=8))
        yield f"uniform {step} rms, two sided", alike(Uniform(step, "two_sided"))
    for step in (0.05, 0.1, 0.2):
        yield f"uniform {step} loss, gptq", _by_loss(model, step)
        yield f"uniform {step} loss, gptq, trellis", _by_loss(model, step, 8)
        yield f"uniform {step} loss, two sided", alike(Uniform(step, "two_sided", "loss"))


def _by_loss(model: Model, step: float, trellis: int = 0) -> dict[str, Quantiser]:
    """Feedback by columns alone, the step of each tensor by its curvature: what allocation is worth without rows."""
    found: dict[str, Quantiser] = {}
    for name in model.names:
        curvature = model.statistics[name].curvature
        assert curvature is not None
        # Rows are alike here, so the mean of their weights counts: trace G cancels but for their number.
        size = 2.0 ** factors_of(curvature.inputs).log2_step.mean() * len(curvature.outputs) ** 0.5
        rms = np.sqrt(np.mean(np.square(model.weights[name], dtype=np.float64)))
        found[name] = Uniform(float(step * 1e-3 * size / rms), "gptq", trellis=trellis)
    return found


def measure(model: Model, quantisers: Mapping[str, Quantiser]) -> tuple[float, float, float, float]:
    """(bits per weight, KL divergence and loss in bits per symbol, seconds of encoding)."""
    begin, parts = time.perf_counter(), {}
    for name, quantiser in quantisers.items():
        parts[name] = quantiser.encode(model.weights[name], model.statistics[name])
    seconds = time.perf_counter() - begin
    decoded = {name: quantisers[name].decode(model.weights[name].shape, each) for name, each in parts.items()}
    codes = [each["codes"] for each in parts.values()]
    states = [int(quantiser.stored_settings.get("trellis", 0)) for quantiser in quantisers.values()]
    stored = len(range_codec.encode(codes, states))
    stored += sum(value.nbytes for each in parts.values() for name, value in each.items() if name != "codes")
    return 8 * stored / model.size, *model.cost(decoded), seconds


def main() -> None:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--text", default="openwebtext")
    parser.add_argument("--symbols", type=int, default=65536)
    parser.add_argument("--windows", type=int, default=64)
    args = parser.parse_args()
    for run in args.runs:
        model = Model(run, args.text, args.symbols, args.windows)
        print(f"{run}: {model.size:,} weights in matrices, {model.heldout.size:,} symbols of {args.text}")
        for title, quantisers in methods(model):
            bits, divergence, difference, seconds = measure(model, quantisers)
            print(
                f"{title:32} {bits:.3f} {1e3 * divergence:9.3f}e-3 {1e3 * difference:9.3f}e-3 {seconds:6.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
