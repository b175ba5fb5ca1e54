"""Runs by the clock, simulated: does any end after its limit, how much of it is unused, at which rate does it end?

    python -m tests.bench.deadline [--runs 1000] [--limit-s 600] [--jobs 2]

Each run is the real training loop on a fake engine whose device and clock are simulated. Steps take 0.07 to 3.4 s; how
that varies within a run is one of KINDS. Half of the runs have an engine that computes while the host queues the next
step, as on a GPU, half one that is done when a step is queued, as on a CPU.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from shared.engine.protocol import StepResult
from shared.model.stages import StepNumbers
from shared.optim import lr_factor
from tests.fake_training import FakeDevice, FakeEngine
from tests.loop_harness import make

FASTEST_S, SLOWEST_S = 0.07, 3.4
# What the host does for each step, in seconds. Hidden behind the device except close to the end.
HOST_S = 0.01
SPIKE_SHARE, SPIKE_FACTOR = 0.01, 2.0
DRIFT = 0.2

BY_CLOCK = ("schedule.driver=time", "training.steps=1000000")
QUIET = ("training.log_every_steps=1000000", "training.val_every_steps=0", "training.checkpoint_every_steps=0")

# (random numbers, share of the limit that has passed) -> a step's length over the run's usual one.
Jitter = Callable[[np.random.Generator, float], float]


def lognormal(deviation: float) -> Jitter:
    """Independent steps, `deviation` of them that of the logarithm."""
    return lambda rng, passed: float(np.exp(deviation * rng.standard_normal()))


def spikes(rng: np.random.Generator, passed: float) -> float:
    """Steps of which one in a hundred takes twice as long."""
    return lognormal(0.02)(rng, passed) * (SPIKE_FACTOR if rng.random() < SPIKE_SHARE else 1.0)


def drift(direction: float) -> Jitter:
    """Steps that become slower or faster over the run."""
    return lambda rng, passed: lognormal(0.02)(rng, passed) * (1.0 + direction * DRIFT * (passed - 0.5))


KINDS: dict[str, Jitter] = {
    "constant": lambda rng, passed: 1.0,
    "lognormal, 5 %": lognormal(0.05),
    "lognormal, 10 %": lognormal(0.10),
    "lognormal, 20 %": lognormal(0.20),
    "1 % of the steps take twice as long": spikes,
    "10 % slower at the end": drift(1.0),
    "10 % faster at the end": drift(-1.0),
}


class JitteryDevice(FakeDevice):
    """A device that takes another time for every step; `lengths_s` are those of the steps so far."""

    def __init__(self, step_s: float, limit_s: float, jitter: Jitter, seed: int, *, computes: bool) -> None:
        super().__init__(queueing_s=HOST_S)
        self.step_s, self.limit_s, self.jitter, self.computes = step_s, limit_s, jitter, computes
        self.rng = np.random.default_rng(seed)
        self.lengths_s: list[float] = []

    def queue(self) -> float:
        length_s = self.step_s * self.jitter(self.rng, self.now_s / self.limit_s)
        self.lengths_s.append(length_s)
        if self.computes:
            self.computing_s = length_s
        else:
            self.queueing_s = length_s
        return super().queue()


class IdleEngine(FakeEngine):
    """An engine that computes nothing: time is all that counts here."""

    def train_step(self, x: np.ndarray, numbers: StepNumbers) -> StepResult:
        done_s = self.device.queue()
        self.steps += 1

        def result() -> tuple[float, float]:
            self.device.wait(done_s)
            return math.log(self.spec.vocabulary.size), 1.0

        return result


@dataclass(frozen=True)
class Ending:
    """How one run ended. `unused_steps` is the time left over the mean step, below 0 for a run that is late;
    `foreseeable` says whether its last step was no slower than the slowest before it, without the first, which may
    have compiled; `last_rate` is the factor on the learning rates in its last step over that of a run of as many steps
    by steps."""

    kind: str
    step_s: float
    steps: int
    unused_steps: float
    foreseeable: bool
    last_rate: float

    @property
    def late(self) -> bool:
        return self.unused_steps < 0.0


def simulate(
    jitter: Jitter,
    step_s: float,
    limit_s: float,
    seed: int,
    *,
    computes: bool,
    reserve_s: float = 0.0,
    kind: str = "",
) -> Ending:
    """One run; `computes` says whether the device works while the host goes on."""
    limits = (f"training.time_limit_s={limit_s}", f"training.reserve_s={reserve_s}")
    with tempfile.TemporaryDirectory() as folder:
        harness = make(Path(folder), *BY_CLOCK, *QUIET, *limits)
        harness.engine = IdleEngine(harness.spec)
        device = harness.engine.device = JitteryDevice(step_s, limit_s, jitter, seed, computes=computes)
        outcome = harness.start()
    assert outcome.status == "finished", outcome.message
    lengths = device.lengths_s
    rate = harness.observer.named("step")[-1].lr_factor
    return Ending(
        kind,
        step_s,
        outcome.step,
        (limit_s - reserve_s - outcome.elapsed_s) / statistics.fmean(lengths),
        lengths[-1] <= max(lengths[1:-1], default=0.0),
        rate / lr_factor(harness.spec.schedule, 1.0 - 1.0 / outcome.step),
    )


def run_number(index: int, limit_s: float) -> Ending:
    """The run of that number: kinds in turn, steps between the fastest and the slowest evenly in the logarithm."""
    share = np.random.default_rng(index).random()
    step_s = FASTEST_S * (SLOWEST_S / FASTEST_S) ** share
    kind = list(KINDS)[index % len(KINDS)]
    computes = index // len(KINDS) % 2 == 0
    return simulate(KINDS[kind], step_s, limit_s, index, computes=computes, kind=kind)


def endings(runs: int, limit_s: float, jobs: int) -> list[Ending]:
    """All runs, in order."""
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(partial(run_number, limit_s=limit_s), range(runs), chunksize=8))


def table(found: Sequence[Ending]) -> str:
    """One line a kind, Markdown."""
    lines = [
        "| steps of a run | runs | late | by a step slower than all before | unused steps, mean | most "
        "| last rate over that of a run by steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in (*KINDS, "all"):
        some = [ending for ending in found if kind in (ending.kind, "all")]
        late = [ending for ending in some if ending.late]
        unused = [ending.unused_steps for ending in some]
        rates = [ending.last_rate for ending in some]
        lines.append(
            f"| {kind} | {len(some)} | {len(late)} | {sum(not ending.foreseeable for ending in late)} "
            f"| {statistics.fmean(unused):.2f} | {max(unused):.2f} | {min(rates):.2f} to {max(rates):.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate; status 1 if a run was late or left two steps unused."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=1000, help="default %(default)s")
    parser.add_argument("--limit-s", type=float, default=600.0, help="default %(default)s")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default %(default)s")
    args = parser.parse_args(argv)
    found = endings(args.runs, args.limit_s, args.jobs)
    print(table(found))
    broken = [ending for ending in found if ending.late or ending.unused_steps >= 2.0]
    for ending in broken:
        print(ending)
    print("none late, less than two steps unused" if not broken else f"{len(broken)} runs break the promise")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
