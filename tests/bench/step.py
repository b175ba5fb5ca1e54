"""Time of a training step in this tree and in an older one: `python -m tests.bench.step TREE [--engine mlx]`.

A process of each tree trains `smoke` on random windows of the documentation, a few steps a turn, and they take turns,
so that what else the machine does falls on both. On a machine that has no core to spare processor time says more than
seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from tests import ROOT
from tests.bench.turns import Worker, ratios_text, serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("tree", type=Path, help="the older tree")
    parser.add_argument("--engine", choices=("mlx", "torch"), default="mlx")
    parser.add_argument("--spec", default="smoke")
    parser.add_argument("--set", action="append", default=[], help="as of `bytetwin train`")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="in a turn")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.engine, args.spec, args.set, args.steps)
        return
    words = [str(args.tree), "--worker", "--engine", args.engine, "--spec", args.spec, "--steps", str(args.steps)]
    words += [word for each in args.set for word in ("--set", each)]
    program = Path(__file__).resolve()
    trees = {"older": args.tree.resolve(), "newer": ROOT}
    workers = {name: Worker(str(program), *words, tree=tree) for name, tree in trees.items()}
    for name, worker in workers.items():
        print(f"{name}: ready after {float(worker.ask('ready')[0]):.1f} s, loss {worker.ask('loss')[0]}", flush=True)
    spent: dict[str, list[list[float]]] = {name: [] for name in workers}
    for _ in range(args.rounds):
        for name, worker in workers.items():
            spent[name].append([1e3 * float(value) / args.steps for value in worker.ask("turn")])
    for worker in workers.values():
        worker.stop()
    for index, what in enumerate(("elapsed", "processor time")):
        times = {name: [turn[index] for turn in turns] for name, turns in spent.items()}
        for name, values in times.items():
            middle, least, most = statistics.median(values), min(values), max(values)
            print(f"{what}, {name}: median {middle:.0f} ms a step, {least:.0f} to {most:.0f}")
        print(f"{what}, older to newer: {ratios_text(times['older'], times['newer'])} of {args.steps} steps")


def work(engine_name: str, name: str, changes: list[str], steps: int) -> None:
    """Answer `ready`, `loss` of the first step, and `turn` with seconds."""
    begin = time.perf_counter()
    from shared.engine.microbatch import with_micro_batches
    from shared.engine.package import create_engine, engine_package
    from shared.model import initial_weights
    from shared.optim import step_hyperparameters
    from shared.spec import load_spec

    spec = load_spec(name, changes)
    spec = with_micro_batches(spec, engine_name, engine_package(engine_name).device_facts())
    engine = create_engine(engine_name, spec)
    engine.initialise(initial_weights(spec))
    text = np.frombuffer(b"".join(path.read_bytes() for path in sorted((ROOT / "docs").rglob("*.md"))), np.uint8)
    generator, length = np.random.default_rng(0), spec.model.seq_len

    def step() -> float:
        starts = generator.integers(0, len(text) - length, spec.training.batch_symbols // length)
        x = np.stack([text[start : start + length] for start in starts]).astype(np.int32)
        return engine.train_step(x, step_hyperparameters(spec, 300, 0.5))()[0]

    loss = step()
    step()
    ready_s = time.perf_counter() - begin

    def turn() -> str:
        start, used = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        return f"{time.perf_counter() - start} {time.process_time() - used}"

    serve({"ready": lambda: ready_s, "loss": lambda: loss, "turn": turn})


if __name__ == "__main__":
    main()
