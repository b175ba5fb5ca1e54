"""Shares of bytes: the price that all tensors agree on, and what is left over."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.artifact.allocate import Options, allocate
from shared.artifact.curves import Curve, is_smooth, with_dial
from shared.spec import QuantiserSpec

WIDTHS = np.array([8.0, 7.0, 6.0, 5.0, 4.0])


def widths_of(weights: int, error: float) -> Curve:
    """A tensor whose error falls by a factor of 4 with each bit."""
    return Curve(QuantiserSpec(), WIDTHS, weights * WIDTHS, error * 4.0**-WIDTHS)


def steps_of(weights: int, error: float) -> Curve:
    """The same over steps: the entropy of Gaussian weights, the error of even rounding."""
    steps = 2.0 ** np.arange(-5.0, 0.5, 0.5)
    base = QuantiserSpec(method="sd_clip")
    return Curve(base, steps, weights * (2.05 - np.log2(steps)), error * weights * steps**2 / 12)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 1e6)), min_size=1, max_size=4), st.floats(0.0, 1.0))
def test_widths_are_within_one_tensor_of_the_best_choice(tensors: list[tuple[int, float]], share: float) -> None:
    options = {str(index): Options([widths_of(*tensor)], 1.0) for index, tensor in enumerate(tensors)}
    least, most = (sum(width * count for count, _ in tensors) for width in (4, 8))
    target = least + share * (most - least)
    chosen = allocate(options, target)
    bits, nats = (sum(getattr(choice, name) for choice in chosen.values()) for name in ("bits", "nats"))
    assert bits <= target + 1e-9
    best = min(
        sum(float(each.nats[index]) for each, index in zip(options.values(), indices, strict=True))
        for indices in itertools.product(range(5), repeat=len(tensors))
        if sum(float(each.bits[index]) for each, index in zip(options.values(), indices, strict=True)) <= target + 1e-9
    )
    # On the convex hull nothing is better at the same bits; off it at most the last upgrade of one tensor is missed.
    # What one more bit for the weights of one tensor would save.
    missed = max(0.75 * chosen[name].nats * (chosen[name].value < 8) for name in options)
    assert best <= nats * (1 + 1e-9) and nats <= (best + missed) * (1 + 1e-9)
    smaller = [choice for choice in chosen.values() if choice.value < 8 and choice.bits / choice.value <= target - bits]
    assert not smaller, "a wider code of one tensor would have fitted"


def test_an_upgrade_is_the_one_that_saves_most_for_a_bit() -> None:
    """From 5 bits: 6 save 3 for a bit of each of 10 weights, 7 save 3.75 for two."""
    options = Options([widths_of(10, 4.0**6)], 1.0)
    assert options.upgrade(3, 25.0) == options.upgrade(3, 10.0) == (pytest.approx(0.3), 2)
    assert options.upgrade(3, 9.0) is None and options.upgrade(0, 1e9) is None


def test_steps_make_sensitivity_times_step_squared_equal() -> None:
    errors = {"a": 1.0, "b": 8.0, "c": 0.2}
    options = {name: Options([steps_of(1000, error)], 2.0) for name, error in errors.items()}
    chosen = allocate(options, 3 * 1000 * 4.5)
    worth = [errors[name] * choice.value**2 for name, choice in chosen.items()]
    assert worth == pytest.approx([worth[0]] * 3, rel=0.05)
    assert sum(choice.bits for choice in chosen.values()) == pytest.approx(3 * 1000 * 4.5, rel=1e-3)


def test_the_better_of_two_methods_is_taken_and_a_tensor_that_costs_nothing_gets_least() -> None:
    worse, better = widths_of(100, 1.0), widths_of(100, 0.1)
    options = {"a": Options([worse, better], 1.0), "idle": Options([worse], 0.0)}
    chosen = allocate(options, 100 * 6 + 100 * 4)
    assert chosen["a"].curve == 1 and chosen["a"].settings.bits == 6 and chosen["idle"].settings.bits == 4
    assert allocate(options, 0.0)["a"].settings.bits == 4, "the least there is where nothing fits"
    assert allocate({"idle": options["idle"]}, 1e9)["idle"].settings.bits == 4


def test_a_curve_between_its_points_and_moved_to_what_was_measured() -> None:
    curve = steps_of(1000, 1.0)
    bits, error = curve.at(2.0**-2.25)
    assert bits == pytest.approx(1000 * (2.05 + 2.25)) and error == pytest.approx(1000 * 2.0**-4.5 / 12)
    moved = curve.corrected(0.25, 4000.0, 1.0)
    assert moved.at(0.25) == pytest.approx((4000.0, 1.0))
    assert moved.at(0.5)[1] == pytest.approx(4.0) and moved.at(0.5)[0] == pytest.approx(3000.0)
    assert is_smooth(curve.base) and len(curve.filled().values) > 300
    coarse = with_dial(curve.base, 0.41)
    assert coarse.clip_sd / (2 ** (coarse.bits - 1) - 1) == pytest.approx(0.41, rel=1e-4) and coarse.bits == 5
