"""What a temperature and a bias of the logits gain on packed weights (docs/techniques.md 11.11).

    python -m tests.bench.logits RUN... [--data NAME ...] [--windows 48] [--set artifact.key=value ...]

Every run is packed in memory with its own settings, or those given. The log-probabilities of the packed weights are
computed once, on the training windows that a fit reads and on windows at equal distances of each held-out text. Both
forms are fitted to the former by the code that packs.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import numpy as np

from data.datasets import open_split
from shared.artifact import pack_bytes, unpack_bytes
from shared.artifact.logit_fit import fit_logits
from shared.cli.scoring import default_engine
from shared.engine.package import create_scorer
from shared.engine.protocol import Scorer
from shared.model.logits import BIAS, TEMPERATURE
from shared.runs.target import load_trained
from shared.spec import Spec, with_overrides
from shared.training.calibration import calibrate_weights, logit_windows
from shared.training.sources import open_training_text

FORMS = ("temperature", "temperature_bias")


class Replayed:
    """A scorer that computes the distributions of a window once."""

    def __init__(self, spec: Spec, scorer: Scorer) -> None:
        self.spec, self.scorer = spec, scorer
        self._known: dict[bytes, np.ndarray] = {}

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        for row in x:
            if row.tobytes() not in self._known:
                self._known[row.tobytes()] = self.scorer.log_probs(row[None])[0]
        return np.stack([self._known[row.tobytes()] for row in x])


def mean_nats(log_probs: np.ndarray, x: np.ndarray, fitted: dict[str, np.ndarray]) -> float:
    """Mean nats of x [N, T] by adjusted log-probabilities [N, T, V]."""
    scores = log_probs / float(fitted[TEMPERATURE][0]) + fitted.get(BIAS, np.zeros(1)).astype(np.float64)
    chosen = np.take_along_axis(scores, x[..., None], axis=-1)[..., 0]
    return float((np.log(np.exp(scores).sum(axis=-1)) - chosen).mean())


def main() -> None:
    """Print gains in bits per byte: one line for each run, form and text, then means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", nargs="+", default=["builtin"], help="datasets whose held-out text is scored")
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    gains: dict[tuple[str, str], list[float]] = {}
    for run in args.runs:
        target = load_trained(run, "averaged", None, Path("runs"))
        spec = with_overrides(target.spec, [*args.overrides, "artifact.logits=none"])
        made = calibrate_weights(default_engine(), spec, target.weights)
        packed = unpack_bytes(pack_bytes(spec, target.weights, statistics=made.statistics if made else None)).weights
        scorer = create_scorer(default_engine(), spec, packed)
        texts = {}
        for name in args.data:
            text = open_split(name, "heldout", spec.vocabulary)
            starts = np.linspace(0, text.num_symbols - spec.model.seq_len, args.windows).astype(int)
            x = np.stack([text.read(start, spec.model.seq_len) for start in starts.tolist()])
            log_probs = np.concatenate([scorer.log_probs(row[None]) for row in x]).astype(np.float64)
            texts[name] = log_probs, x, math.log(2.0) * text.num_bytes / text.num_symbols
        replayed = Replayed(spec, scorer)
        for form in FORMS:
            replayed.spec = with_overrides(spec, [f"artifact.logits={form}"])
            fitted = fit_logits(replayed, logit_windows(replayed.spec, open_training_text(spec)))  # type: ignore[arg-type]
            for name, (log_probs, x, nats_per_bit) in texts.items():
                before = mean_nats(log_probs, x, {TEMPERATURE: np.ones(1)})
                gain = (mean_nats(log_probs, x, fitted) - before) / nats_per_bit
                gains.setdefault((form, name), []).append(gain)
                print(
                    f"{run} {form} {name}: T {fitted[TEMPERATURE][0]:.4f}, {before / nats_per_bit:.4f} bits per byte, "
                    f"{gain:+.5f}",
                    flush=True,
                )
    for (form, name), values in gains.items():
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        print(f"{form} {name}: mean {statistics.fmean(values):+.5f}, sd {spread:.5f}, n {len(values)}")


if __name__ == "__main__":
    main()
