"""`python -m tests.bench.activation_memory`: the memory of a pass, measured, beside its estimate.

    python -m tests.bench.activation_memory --engine mlx --random 80 --seed 1 tiny smoke

Peaks of presets and of random specs; another --seed draws others.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

import mlx_train.engine  # noqa: F401  # before torch: it loads the BLAS
from mlx_train.device import compute_streams
from shared.engine.activations import activation_bytes
from shared.spec import Spec, load_spec
from tests.measured_memory import for_passes, mlx_peak_bytes, torch_peak_bytes
from tests.parity.test_random_specs import specs

ROWS = (4, 16, 64)


def drawn(count: int, number: int) -> list[Spec]:
    """Random specs, each number others."""
    found: list[Spec] = []

    checks = list(HealthCheck)

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=checks, phases=[Phase.generate])
    @seed(number)
    @given(spec=specs())
    def draw(spec: Spec) -> None:
        found.append(spec)

    draw()
    return found


def measured(spec: Spec, engine: str, rows: int, compiled: bool) -> tuple[int, int]:
    """(peak, estimate) of one micro-batch."""
    spec = for_passes(spec, rows, len(compute_streams()) if engine == "mlx" else 1, compiled)
    peak = mlx_peak_bytes(spec) if engine == "mlx" else torch_peak_bytes(spec)
    return peak, activation_bytes(spec, engine, rows).expected


def report(name: str, values: list[tuple[int, int]]) -> None:
    """How the estimates lie to the peaks, and the factor for them that these peaks ask for, with its standard error."""
    peak, estimate = np.array(values, float).T
    ratio, off = estimate / peak, np.abs(estimate / peak - 1)
    error = np.std(1 / ratio) / len(ratio) ** 0.5
    print(
        f"{name}: {len(peak)} specs, estimate / peak median {np.median(ratio):.3f}, {ratio.min():.2f} to "
        f"{ratio.max():.2f}; off by {np.median(off):.1%}, 90th percentile {np.quantile(off, 0.9):.1%}; "
        f"factor {np.mean(1 / ratio):.3f} +- {error:.3f}"
    )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*")
    parser.add_argument("--engine", choices=("torch", "mlx"), default="torch")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    chosen = random.Random(words.seed)

    def asked() -> Iterator[tuple[str, Spec, int]]:
        yield from (("presets", load_spec(name), 1) for name in words.presets)
        yield from (("random", spec, chosen.choice(ROWS)) for spec in drawn(words.random, words.seed))

    found: dict[str, list[tuple[int, int]]] = {}
    for kind, spec, rows in asked():
        values = measured(spec, words.engine, rows, words.compile)
        found.setdefault(kind, []).append(values)
        if kind == "presets":
            print(f"{spec.name}: peak {values[0] / 1e6:.2f} MB, estimate {values[1] / 1e6:.2f} MB", flush=True)
    for kind, all_values in found.items():
        report(f"{words.engine}, {kind}", all_values)


if __name__ == "__main__":
    main()
