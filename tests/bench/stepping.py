"""Processor time of one more symbol, engine by engine, in steps and by the whole window:
`python -m tests.bench.stepping RUN --runs-dir DIR`.

All take turns, so that what else the machine does falls on each; of the turns the median and the range count. The text
is drawn at random, which costs what any text does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from shared.engine.package import available_engines, create_scorer
from shared.engine.protocol import Scorer, Stepper
from shared.engine.window_stepper import WindowStepper
from shared.runs.target import load_trained


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--symbols", type=int, default=128, help="of each turn, default 128")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    target = load_trained(args.run, step=None, runs_dir=args.runs_dir)
    scorers = {name: create_scorer(name, target.spec, target.weights) for name in ["numpy", *available_engines()]}
    steppers: dict[str, Stepper] = {}
    for rows in args.rows:
        for name, scorer in scorers.items():
            steppers[f"{name}, {rows} rows"] = scorer.stepper(rows)
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(args.turns):
        for name, stepper in steppers.items():
            times[name].append(milliseconds(stepper, target.spec.vocabulary.size, args.symbols))
    for name, scorer in scorers.items():
        times[f"{name}, 1 row by the window"] = [by_window(scorer)]
    for name, found in times.items():
        print(f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} to {max(found):.2f} |")


def milliseconds(stepper: Stepper, vocab_size: int, symbols: int) -> float:
    """Of processor time for one step, in the middle of a window."""
    text = np.random.default_rng(0).integers(0, vocab_size, (stepper.rows, 256 + symbols)).astype(np.int32)
    stepper.start(text[:, :240])
    for position in range(240, 256):  # Recorded in these.
        stepper.advance(text[:, position])
    begin = time.process_time()
    for position in range(256, 256 + symbols):
        stepper.advance(text[:, position])
    return 1e3 * (time.process_time() - begin) / symbols


def by_window(scorer: Scorer) -> float:
    """Milliseconds of processor time for one symbol after 256, by whole windows."""
    stepper = WindowStepper(scorer, 1)
    stepper.start(np.zeros((1, 256), np.int32))
    begin = time.process_time()
    stepper.advance(np.zeros(1, np.int32))
    return 1e3 * (time.process_time() - begin)


if __name__ == "__main__":
    main()
