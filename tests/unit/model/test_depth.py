"""Depth wiring: the order of the layers, skips, gates, parallel blocks, and what the spec refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from shared.errors import SpecError
from shared.model import initial_weights, parameter_counts, parameter_manifest
from shared.model.block import attention_branch, mlp_branch
from shared.model.layer import TrunkContext, trunk_layer
from shared.model.layer_order import layer_order, num_skips
from shared.model.stages import LOOP_RAMP
from shared.model.trunk import run_trunk
from shared.ops import NumpyOps
from shared.spec import ModelSpec, Spec, load_spec
from shared.tolerances import ORACLE_OPERATION_REL
from tests.techniques import oracle_params, tiny

OPS = NumpyOps()


def looped(num_layers: int, first: int, last: int, extra_loops: int, *overrides: str) -> Spec:
    return tiny(
        f"model.num_layers={num_layers}",
        f"model.loop.first_layer={first}",
        f"model.loop.last_layer={last}",
        f"model.loop.extra_loops={extra_loops}",
        *overrides,
    )


def layers(model: ModelSpec) -> list[int]:
    return [step.layer for step in layer_order(model)]


def skips(model: ModelSpec) -> list[tuple[int, int]]:
    """(place in the virtual order where an output is kept, place where it enters), in the order of the skips."""
    kept, pairs = [], []
    for place, step in enumerate(layer_order(model)):
        if step.skip is not None:
            assert step.skip == len(pairs)
            pairs.append((kept.pop(), place))
        if step.keeps_output:
            kept.append(place)
    assert not kept, "an output is kept that enters nowhere"
    return pairs


def test_the_order_of_the_record():
    """docs/techniques.md 6.2: N = 11, two extra loops over layers 3 to 5."""
    model = looped(11, 3, 5, 2).model
    assert layers(model)[:8] == [0, 1, 2, 3, 4, 5, 3, 4]
    assert layers(model)[8:] == [5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert skips(model) == [(7, 8), (6, 9), (5, 10), (4, 11), (3, 12), (2, 13), (1, 14), (0, 15)]
    assert [step.extra_pass for step in layer_order(model)] == [0] * 6 + [1] * 3 + [2] * 3 + [0] * 5


def test_the_order_with_a_loop_of_two_layers():
    model = looped(11, 4, 5, 2).model
    assert layers(model) == [0, 1, 2, 3, 4, 5, 4, 5, 4, 5, 6, 7, 8, 9, 10]
    assert skips(model) == [(6, 7), (5, 8), (4, 9), (3, 10), (2, 11), (1, 12), (0, 13)]


def test_the_plain_order():
    model = tiny("model.num_layers=11").model
    assert layers(model) == list(range(11))
    assert skips(model) == [(4, 5), (3, 6), (2, 7), (1, 8), (0, 9)]
    assert skips(tiny("model.num_layers=4").model) == [(1, 2), (0, 3)]
    assert skips(tiny("model.num_layers=1").model) == []
    assert num_skips(tiny("model.num_layers=4", "model.unet_skips=false").model) == 0


def test_skips_around_the_loop():
    """docs/techniques.md 13.5: layers 0, 1, then [2, 3, 4] nine times, then 5, 6, 7; skips between the two ends."""
    model = looped(8, 2, 4, 8, "model.loop.skips=outside").model
    assert layers(model) == [0, 1, *([2, 3, 4] * 9), 5, 6, 7]
    assert skips(model) == [(1, 29), (0, 30)]
    longer_start = looped(6, 3, 4, 1, "model.loop.skips=outside").model
    assert layers(longer_start) == [0, 1, 2, 3, 4, 3, 4, 5]
    assert skips(longer_start) == [(2, 7)], "the outputs of layers 0 and 1 would find nowhere to enter"


def test_a_loop_at_either_end():
    assert layers(looped(3, 0, 1, 1).model) == [0, 1, 0, 1, 2]
    assert layers(looped(3, 2, 2, 2).model) == [0, 1, 2, 2, 2]
    assert layers(looped(3, 0, 2, 1).model) == [0, 1, 2, 0, 1, 2]


def branches(spec: Spec, params: dict[str, np.ndarray]) -> tuple[Callable, Callable]:
    """A(layer, x) and M(layer, x), the two halves of a block."""

    def attention(layer: int, x: np.ndarray) -> np.ndarray:
        return attention_branch(trunk_layer(OPS, spec.model, params, layer, TrunkContext()), x)

    def mlp(layer: int, x: np.ndarray) -> np.ndarray:
        return mlp_branch(trunk_layer(OPS, spec.model, params, layer, TrunkContext()), x)

    return attention, mlp


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def assert_trunk_is(spec: Spec, params: dict[str, np.ndarray], expected: np.ndarray, x0: np.ndarray) -> None:
    found = run_trunk(OPS, spec.model, params, x0)
    normalised = OPS.rms_norm(expected, spec.model.norm_eps)
    assert np.abs(found - normalised).max() <= ORACLE_OPERATION_REL * np.abs(normalised).max()


def inputs(spec: Spec) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 5, spec.model.model_dim))


@pytest.mark.parametrize("ramp", [None, 0.25])
def test_a_gated_loop_with_gated_skips_by_hand(ramp: float | None):
    """Order 0 1 | 1 2: the output of step 1 enters before step 2, that of step 0 before step 3."""
    spec = looped(3, 1, 1, 1, "model.loop.gates=true", "model.skip_gates=true")
    params, x0 = oracle_params(spec), inputs(spec)
    attention, mlp = branches(spec, params)

    def mixed(layer: int, x: np.ndarray) -> np.ndarray:
        mix = params[f"layers.{layer}.resid_mix"]
        return mix[0] * x + mix[1] * x0

    def block(layer: int, x: np.ndarray) -> np.ndarray:
        h = mixed(layer, x)
        h = h + attention(layer, h)
        return h + mlp(layer, h)

    def entered(number: int, x: np.ndarray, kept: np.ndarray) -> np.ndarray:
        share = sigmoid(params[f"skips.{number}.gate"])
        return share * x + (1.0 - share) * params[f"skips.{number}.weight"] * kept

    gate = params["loop.gates"][0, 0] * (1.0 if ramp is None else ramp)
    first = block(0, x0)
    second = block(1, first)
    x = entered(0, second, second)
    x = x + gate * (block(1, x) - x)
    x = block(2, entered(1, x, first))
    run = {} if ramp is None else {LOOP_RAMP: OPS.asarray(np.array(ramp))}
    assert_trunk_is(spec, params | run, x, x0)


def test_the_palm_form_by_hand():
    spec = tiny("model.num_layers=2", "model.parallel.form=palm", "model.parallel.first_layer=1")
    params, x0 = oracle_params(spec), inputs(spec)
    attention, mlp = branches(spec, params)
    mix = [params[f"layers.{layer}.resid_mix"] for layer in range(2)]
    x = (mix[0][0] + mix[0][1]) * x0
    x = x + attention(0, x)
    x = first = x + mlp(0, x)
    x = x + params["skips.0.weight"] * first
    x = mix[1][0] * x + mix[1][1] * x0
    assert_trunk_is(spec, params, x + attention(1, x) + mlp(1, x), x0)


@pytest.mark.parametrize("split", ["after_skip", "before_skip"])
def test_the_two_lane_form_by_hand(split: str):
    """docs/techniques.md 6.3, #1530: the skip enters lane 0, attention reads its mix with x0, the mean leaves."""
    overrides = ("model.parallel.form=two_lane", "model.parallel.first_layer=2", f"model.parallel.split={split}")
    spec = tiny("model.num_layers=4", *overrides)
    params, x0 = oracle_params(spec), inputs(spec)
    attention, mlp = branches(spec, params)
    kept = []
    x = x0
    for layer in (0, 1):
        mix = params[f"layers.{layer}.resid_mix"]
        x = mix[0] * x + mix[1] * x0
        x = x + attention(layer, x)
        x = x + mlp(layer, x)
        kept.append(x)
    lane0 = x + params["skips.0.weight"] * kept[1]
    # The second lane opens at the stream that has taken up the skip, or at the one that has not.
    lane1 = lane0 if split == "after_skip" else x
    for layer in (2, 3):
        if layer == 3:
            lane0 = lane0 + params["skips.1.weight"] * kept[0]
        mix, post, keep = (params[f"layers.{layer}.{name}"] for name in ("resid_mix", "lanes.post", "lanes.resid"))
        a, m = attention(layer, mix[0] * lane0 + mix[1] * x0), mlp(layer, lane1)
        lane0, lane1 = (
            keep[0] * lane0 + post[0, 0] * a + post[1, 0] * m,
            keep[1] * lane1 + post[0, 1] * a + post[1, 1] * m,
        )
    assert_trunk_is(spec, params, (lane0 + lane1) / 2, x0)


def test_the_norm_scale_counts_physical_layers():
    """The MLP squares its input, so a norm scale of 1/sqrt(l + 1) makes its output 1/(l + 1) times as large."""
    plain, scaled = looped(3, 1, 2, 1), looped(3, 1, 2, 1, "model.ln_scale=true")
    params, x = oracle_params(plain), inputs(plain)
    for layer in range(3):
        _, mlp = branches(plain, params)
        _, scaled_mlp = branches(scaled, params)
        assert np.allclose(scaled_mlp(layer, x), mlp(layer, x) / (layer + 1), rtol=ORACLE_OPERATION_REL)


def test_widths_of_each_layer():
    spec = tiny("model.mlp_dims=[16, 48, 96]")
    shapes = {parameter.name: parameter.shape for parameter in parameter_manifest(spec)}
    assert [shapes[f"layers.{layer}.mlp.up_proj.weight"][0] for layer in range(3)] == [16, 48, 96]
    assert [shapes[f"layers.{layer}.mlp.down_proj.weight"][1] for layer in range(3)] == [16, 48, 96]
    same = tiny("model.mlp_dims=[96, 96, 96]")
    assert parameter_manifest(same) == parameter_manifest(tiny())


def test_new_parameters_and_their_initial_values():
    spec = looped(5, 1, 2, 2, "model.loop.gates=true", "model.skip_gates=true", "model.parallel.form=two_lane")
    weights = initial_weights(spec)
    assert (weights["loop.gates"] == np.ones((2, 2))).all()
    assert [name for name in weights if name.startswith("skips.")] == [
        f"skips.{number}.{part}" for number in range(4) for part in ("weight", "gate")
    ]
    assert (weights["skips.3.gate"] == 0.0).all() and weights["skips.3.gate"].shape == (32,)
    assert (weights["layers.0.lanes.post"] == np.ones((2, 2))).all()
    assert (weights["layers.0.lanes.resid"] == np.float32(1.1)).all()


def test_the_published_size_of_the_recurrent_model():
    """docs/techniques.md 13.5: about 21.0 M parameters, 32 layers deep."""
    spec = load_spec("recurrent")
    counts = parameter_counts(spec)
    block = 512 * (512 + 256 + 256 + 512) + 2 * 512 * 1536
    assert (counts["matrix"], counts["embedding"], counts["head"]) == (8 * block, 4096 * 512, 0)
    # Query gains and two scales a layer, two skips, a gate for each of three layers in eight extra passes.
    assert counts["scalar"] == 8 * (8 + 2 * 512) + 2 * 512 + 24
    assert counts["total"] == 20_980_824
    assert len(layer_order(spec.model)) == 32


LOOP = ("model.loop.first_layer=1", "model.loop.last_layer=1", "model.loop.extra_loops=2")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.mlp_dims=[96]",), "model.mlp_dims = [96]: must be empty or one width for each of the 3 layers"),
        (("model.mlp_dims=[96, 0, 96]",), "model.mlp_dims.1 = 0: must be greater than 0"),
        (
            ("model.loop.first_layer=2", "model.loop.last_layer=1", "model.loop.extra_loops=1"),
            "model.loop.last_layer = 1: must be from model.loop.first_layer (2) to below model.num_layers (3)",
        ),
        (("model.loop.last_layer=3", "model.loop.extra_loops=1"), "model.loop.last_layer = 3: must be from"),
        (("model.loop.extra_loops=65",), "model.loop.extra_loops = 65: must be less than or equal to 64"),
        (
            ("model.parallel.form=palm", "model.parallel.split=before_skip"),
            "model.parallel.split = 'before_skip': must be after_skip where model.parallel.form is not two_lane",
        ),
        (
            ("model.parallel.form=palm", "model.parallel.first_layer=3"),
            "model.parallel.first_layer = 3: must be below model.num_layers (3)",
        ),
        (
            (
                "model.loop.last_layer=1",
                "model.loop.extra_loops=1",
                "model.parallel.form=two_lane",
                "model.parallel.first_layer=1",
            ),
            "model.parallel.first_layer = 1: must be outside of 1 to 1: a loop cannot lead from two lanes back to one",
        ),
        ((*LOOP, "schedule.loop.start_frac=1.0"), "schedule.loop.start_frac = 1.0: must be such that the last loop"),
        (
            (*LOOP, "schedule.loop.start_frac=0.5", "schedule.loop.stagger_frac=0.5"),
            "schedule.loop.start_frac = 0.5: must be such that the last loop starts before 1",
        ),
        ((*LOOP, "schedule.loop.start_step=60"), "schedule.loop.start_step = 60: must be such that the last loop"),
        (
            (*LOOP, "schedule.loop.start_step=9", "schedule.driver=time", "training.time_limit_s=5.0"),
            "schedule.loop.start_step = 9: must be 0 with schedule.driver 'time'",
        ),
        (
            (*LOOP, "model.loop.extra_loops=4", "schedule.loop.stagger_frac=0.1"),
            "model.loop.extra_loops = 4: must be at most 3 with loops that start one after the other",
        ),
        ((*LOOP, "schedule.loop.ramp_steps=5"), "schedule.loop.ramp_steps = 5: must be 0 without model.loop.gates"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides: tuple[str, ...], message: str):
    with pytest.raises(SpecError) as caught:
        load_spec("tiny", overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)
