"""How much of the hardware training uses: operations of the model per second, as a share of a peak that is known."""

from __future__ import annotations

import re
from functools import lru_cache

from shared.engine.flops import training_flops
from shared.engine.hardware import Products, find_peak
from shared.spec import Spec

RANKS = re.compile(r", (\d+) ranks$")
TERA, GIGA = 1e12, 1e9


def utilisation_text(spec: Spec, device: str, symbols_per_s: float) -> str:
    """`38.2 % MFU` of a known device, otherwise operations per second: `1.93 TFLOP/s`. `device` is as environment.json
    names it."""
    flops_per_s = _flops_per_symbol(spec) * symbols_per_s
    peak = peak_flops_per_s(spec, device)
    if peak is not None:
        return f"{flops_per_s / peak:.1%} MFU"
    value, unit = (flops_per_s / TERA, "TFLOP/s") if flops_per_s >= TERA else (flops_per_s / GIGA, "GFLOP/s")
    return f"{value:.3g} {unit}"


def peak_flops_per_s(spec: Spec, device: str) -> float | None:
    """The peak of all devices of a run for the products of its dtype; None for devices that are not in the table."""
    known = find_peak(device)
    if known is None:
        return None
    products: Products = "float32" if spec.training.float32_products == "exact" else "tf32"
    if spec.training.dtype == "bfloat16":
        products = "bfloat16"
    ranks = RANKS.search(device)
    return known[1].flops_per_s(products) * (int(ranks[1]) if ranks else 1)


@lru_cache(maxsize=64)
def _flops_per_symbol(spec: Spec) -> float:
    return training_flops(spec).per_symbol
