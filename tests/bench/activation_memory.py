"""`python -m tests.bench.activation_memory`: the memory of a pass, measured, beside its estimate and its fit.

    python -m tests.bench.activation_memory --engine mlx --random 80 --seed 1 tiny smoke

Peaks of presets and of random specs, and the constants that fit them best; another --seed draws specs to judge a fit
by.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings

import mlx_train.engine  # noqa: F401  # before torch: it loads the BLAS
from mlx_train.device import compute_streams
from shared.engine.activations import ENGINES_THAT_KEEP_SCORES, activation_bytes, loss_of_shapes
from shared.spec import Spec, load_spec
from tests.measured_memory import for_passes, mlx_peak_bytes, torch_peak_bytes
from tests.parity.test_random_specs import specs

ROWS = (4, 16, 64)


def drawn(count: int, number: int) -> list[Spec]:
    """Random specs, each number others."""
    found: list[Spec] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @seed(number)
    @given(spec=specs())
    def draw(spec: Spec) -> None:
        found.append(spec)

    draw()
    return found


def measured(spec: Spec, engine: str, rows: int, compiled: bool) -> tuple[float, float, float, float]:
    """(peak, estimate, kept bytes, bytes of the largest logits) of one micro-batch."""
    spec = for_passes(spec, rows, len(compute_streams()) if engine == "mlx" else 1, compiled)
    ops, loss, beside = loss_of_shapes(spec, rows, engine in ENGINES_THAT_KEEP_SCORES)
    peak = mlx_peak_bytes(spec) if engine == "mlx" else torch_peak_bytes(spec)
    return peak, activation_bytes(spec, engine, rows).expected, ops.kept_bytes(loss, beside), ops.logits_bytes


def report(name: str, values: list[tuple[float, float, float, float]]) -> None:
    """The estimate over the peak, and the constants that fit the peaks best in relative terms, with standard errors."""
    peak, estimate, *sizes = np.array(values).T
    ratio, off = estimate / peak, np.abs(estimate / peak - 1)
    columns = np.stack(sizes, axis=1) / peak[:, None]
    best, *_ = np.linalg.lstsq(columns, np.ones(len(peak)), rcond=None)
    spread = np.sum((columns @ best - 1) ** 2) / max(1, len(peak) - 2)
    errors = np.sqrt(spread * np.diag(np.linalg.pinv(columns.T @ columns)))
    fit = ", ".join(f"{value:.2f} +- {error:.2f}" for value, error in zip(best, errors, strict=True))
    print(
        f"{name}: {len(peak)} specs, estimate / peak median {np.median(ratio):.3f}, {ratio.min():.2f} to "
        f"{ratio.max():.2f}; off by {np.median(off):.1%}, 90th percentile {np.quantile(off, 0.9):.1%}; fit {fit}"
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

    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for kind, spec, rows in asked():
        values = measured(spec, words.engine, rows, words.compile)
        found.setdefault(kind, []).append(values)
        if kind == "presets":
            print(f"{spec.name}: peak {values[0] / 1e6:.2f} MB, estimate {values[1] / 1e6:.2f} MB", flush=True)
    for kind, all_values in found.items():
        report(f"{words.engine}, {kind}", all_values)


if __name__ == "__main__":
    main()
