"""How often the confidence interval of a score covers the truth, by distribution of document length.

    python -m tests.bench.coverage [--draws 2000] [--seed 0]

Draws texts whose documents differ in length and in difficulty, and asks how often the nominal 95 % interval around
their bits per byte holds the score of infinitely much such text. Texts with fewer effective documents than an interval
needs get none and are drawn again. `before` is the interval without correction for length: the spread of all
residuals, with t of one degree of freedom less than there are documents. Exit status 1 if a share lies outside
LOWEST to HIGHEST.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.scoring.confidence import ratio_interval, student_quantile

LEVEL = 0.95
# What a nominal 95 % may really be. Few documents of very unequal length are on the upper side.
LOWEST, HIGHEST = 0.93, 0.98
# The true score; documents scatter around it, short ones more, as their symbols are fewer.
TRUE_BPB, DOCUMENT_SPREAD, SYMBOL_SPREAD = 2.0, 0.3, 2.0

Lengths = Callable[[np.random.Generator], np.ndarray]

DISTRIBUTIONS: dict[str, Lengths] = {
    "equal, 10 documents": lambda rng: np.full(10, 2000.0),
    "uniform, 12 documents": lambda rng: rng.uniform(100, 4000, 12),
    "exponential, 20 documents": lambda rng: 1 + rng.exponential(2000, 20),
    "lognormal, sigma 1, 20 documents": lambda rng: np.exp(rng.normal(7, 1, 20)),
    "lognormal, sigma 1.5, 30 documents": lambda rng: np.exp(rng.normal(7, 1.5, 30)),
    "lognormal, sigma 1.5, 100 documents": lambda rng: np.exp(rng.normal(7, 1.5, 100)),
    "Pareto 1.5, 40 documents": lambda rng: 500 * (1 + rng.pareto(1.5, 40)),
    "short ones and a few long ones, 30 documents": lambda rng: np.where(rng.random(30) < 0.8, 300.0, 5000.0),
}


@dataclass(frozen=True)
class Coverage:
    """`intervals` were drawn, beside `refused` texts with too few effective documents; the shares that covered."""

    intervals: int
    refused: int
    covered_frac: float
    before_frac: float


def coverage(name: str, draws: int, seed: int) -> Coverage:
    """Return how often the interval of one distribution of lengths covers, over `draws` texts that have one."""
    rng = np.random.default_rng([seed, list(DISTRIBUTIONS).index(name)])
    covered = before = done = refused = 0
    while done < draws:
        sizes = DISTRIBUTIONS[name](rng)
        spread = np.sqrt(DOCUMENT_SPREAD**2 + SYMBOL_SPREAD**2 / sizes)
        bits = sizes * (TRUE_BPB + spread * rng.standard_normal(len(sizes)))
        found = ratio_interval(bits * math.log(2.0), sizes, LEVEL)
        if found.low_bpb is None or found.high_bpb is None:
            refused += 1
            continue
        done += 1
        covered += found.low_bpb <= TRUE_BPB <= found.high_bpb
        before += abs(bits.sum() / sizes.sum() - TRUE_BPB) <= _uncorrected_half(bits, sizes)
    return Coverage(done, refused, covered / done, before / done)


def _uncorrected_half(bits: np.ndarray, sizes: np.ndarray) -> float:
    count, ratio = len(bits), bits.sum() / sizes.sum()
    variance = count / (count - 1) * np.sum((bits - ratio * sizes) ** 2) / sizes.sum() ** 2
    return student_quantile(0.5 + LEVEL / 2.0, count - 1) * math.sqrt(variance)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line for each distribution."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--draws", type=int, default=2000, help="texts of each distribution; default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    print(f"{'lengths':45} {'covered':>8} {'before':>8} {'refused':>8}")
    inside = True
    for name in DISTRIBUTIONS:
        found = coverage(name, args.draws, args.seed)
        inside = inside and LOWEST <= found.covered_frac <= HIGHEST
        print(f"{name:45} {found.covered_frac:8.3f} {found.before_frac:8.3f} {found.refused:8,}", flush=True)
    return 0 if inside else 1


if __name__ == "__main__":
    sys.exit(main())
