"""Filling a budget: where the artifact ends, what is predicted of it, and what happens at both ends of the range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from shared.artifact import fill, unpack_bytes
from shared.artifact.allocate import Choice
from shared.artifact.curves import Curve
from shared.artifact.fill import LANDING_BYTES, DoesNotFitError, Filler
from shared.artifact.fill_model import Model, some_rows
from shared.artifact.fill_search import Search, search
from shared.artifact.sensitivity import Divergence, Sensitivity, stored_error
from shared.artifact.statistics import input_statistics
from shared.engine.package import make_scorer_of
from shared.model import parameter_manifest, random_weights
from shared.ops import NumpyOps
from shared.quantisers import InputStatistics
from shared.spec import QuantiserSpec, load_spec
from shared.tolerances import PREDICTED_COST_REL

pytestmark = pytest.mark.slow

SPEC = load_spec("tiny", ["model.model_dim=64", "model.num_layers=2", "training.compile=false"])
WEIGHTS = random_weights(SPEC, 5)
NAMES = [each.name for each in parameter_manifest(SPEC) if each.quantisation != "control" and len(each.shape) >= 2]
WINDOWS = np.random.default_rng(3).integers(0, SPEC.vocabulary.size, (12, SPEC.model.seq_len)).astype(np.int32)


def model_of(codec: str, *settings: Mapping[str, object]) -> Model:
    """Every tensor may be stored by each of some settings."""
    methods = [QuantiserSpec.model_validate(each) for each in settings]
    statistics = input_statistics(NumpyOps(), SPEC, WEIGHTS, [WINDOWS])
    return Model(SPEC, WEIGHTS, dict.fromkeys(NAMES, methods), statistics, codec)  # type: ignore[arg-type]


def searched(model: Model, limit: int, seconds: float = 600.0) -> Search:
    return search(model, Divergence(make_scorer_of("numpy", SPEC), WEIGHTS, WINDOWS), limit, {"made": "here"}, seconds)


@pytest.fixture(scope="module")
def uniform() -> Model:
    return model_of("range", {"method": "row_max", "rounding": "gptq"}, {"method": "uniform", "rounding": "gptq"})


@pytest.fixture(scope="module")
def curves(uniform: Model) -> dict[str, list[Curve]]:
    return {name: uniform.curves(name) for name in NAMES}


def test_steps_end_just_below_the_limit_and_cost_what_is_predicted(uniform: Model) -> None:
    limit = int(sum(WEIGHTS[name].size for name in NAMES) * 3.4 / 8)
    found = searched(uniform, limit)
    filled = found.filled
    assert limit - LANDING_BYTES <= filled.artifact_bytes <= limit and not filled.is_finest
    assert filled.predicted_nats == pytest.approx(found.together_nats, rel=PREDICTED_COST_REL)
    artifact = unpack_bytes(filled.content)
    assert artifact.spec == SPEC and artifact.header["extra"] == {"made": "here"}
    assert {row["codec"] for row in artifact.header["sections"] if row["name"].endswith(".codes")} == {"range"}
    for name, made in filled.stored.items():
        assert artifact.tensors[name].storage.method == made.settings.method
        np.testing.assert_array_equal(artifact.tensors[name].parts["codes"], made.tensor.parts["codes"])
    bits = {name: made.bits / WEIGHTS[name].size for name, made in filled.stored.items()}
    assert max(bits.values()) > min(bits.values()) + 0.5, "all tensors have the same bits, whatever they cost"


def test_what_is_predicted_does_not_hang_on_time_for_a_second_look(uniform: Model) -> None:
    """The sum over tensors does, because it is of sensitivities to other steps."""
    limit = int(sum(WEIGHTS[name].size for name in NAMES) * 1.8 / 8)
    found = searched(uniform, limit, seconds=1e-9)
    cost = Divergence(make_scorer_of("numpy", SPEC), WEIGHTS, WINDOWS).of(unpack_bytes(found.filled.content).weights)
    assert found.filled.predicted_nats != pytest.approx(cost, rel=PREDICTED_COST_REL)
    assert found.together_nats == pytest.approx(cost, rel=PREDICTED_COST_REL)


def test_files_larger_than_expected_again_and_again_still_land(
    uniform: Model, curves: dict[str, list[Curve]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is larger than the one before it let expect, so that aiming just below the limit never fits."""
    sensitivities = {name: Sensitivity(1.0, 1.0) for name in NAMES}
    limit, sizes, plain = int(sum(WEIGHTS[name].size for name in NAMES) * 3.4 / 8), list[int](), fill.assemble

    def growing(*words: Any) -> tuple[bytes, Any]:
        content, info = plain(*words)
        return content + bytes(900 * len(sizes)), info

    monkeypatch.setattr(fill, "assemble", growing)
    filled = Filler(uniform, curves, limit, None, sizes.append).fill(sensitivities)
    assert limit - LANDING_BYTES <= filled.artifact_bytes <= limit < max(sizes)


def test_a_step_at_the_end_of_its_curve_is_not_the_one_that_is_moved(curves: dict[str, list[Curve]]) -> None:
    """Of two tensors that can close a gap alone the smaller is taken, but not if it is at its coarsest already."""
    small, large = sorted(NAMES, key=lambda each: WEIGHTS[each].size)[:: len(NAMES) - 1]
    curves = {name: curves[name][1:] for name in (small, large)}
    filler = Filler(Model(SPEC, WEIGHTS, {name: [] for name in curves}), curves, 10**6)

    def moved(value: float) -> set[str]:
        ends = {small: value, large: 0.3}
        choices = {name: Choice(curves[name][0].settings(at), 0, at, 0.0, 0.0) for name, at in ends.items()}
        found = filler._moved(choices, -1.0)
        assert found is not None
        return {name for name, choice in found.items() if choice.settings != choices[name].settings}

    assert moved(0.3) == {small} and moved(float(curves[small][0].values.max())) == {large}


def test_widths_land_by_pruning(uniform: Model) -> None:
    model = model_of("brotli", {"method": "row_max"})
    sensitivities = {name: Sensitivity(1.0, 1.0) for name in NAMES}
    curves = {name: model.curves(name) for name in NAMES}
    size = Filler(model, curves, 10**9).fill(sensitivities).artifact_bytes
    limit = int(0.7 * size) + 17
    filled = Filler(model, curves, limit).fill(sensitivities)
    assert limit - LANDING_BYTES <= filled.artifact_bytes <= limit
    assert len(unpack_bytes(filled.content).tensors) == len(WEIGHTS)


def test_with_room_for_everything_it_stops_at_the_finest_settings(
    uniform: Model, curves: dict[str, list[Curve]]
) -> None:
    filler = Filler(uniform, curves, 10**9)
    filled = filler.fill({name: Sensitivity(1.0, 1.0) for name in NAMES})
    assert filled.is_finest and filler.encodings == 1
    for name, made in filled.stored.items():
        assert made.settings in [curve.settings(float(curve.values.min())) for curve in curves[name]] or (
            made.settings.method == "row_max" and made.settings.bits == 8
        )
    with pytest.raises(DoesNotFitError) as error:
        Filler(uniform, curves, 3000).fill({name: Sensitivity(1.0, 1.0) for name in NAMES})
    smallest = error.value.smallest_bytes
    assert 3000 < smallest < filled.artifact_bytes / 3 and f"{smallest:,}" in str(error.value)


def test_some_rows_stand_for_all() -> None:
    name = max(NAMES, key=lambda each: WEIGHTS[each].size)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((512, 64)).astype(np.float32)
    x = rng.standard_normal((100, 64))
    statistics = InputStatistics(100, x.T @ x, rng.integers(0, 9, 512))
    some, of_some = some_rows(weights, statistics, weights.size // 4)
    assert some.shape == (128, 64) and of_some is not None and of_some.reads is not None
    np.testing.assert_array_equal(some, weights[::4])
    np.testing.assert_array_equal(of_some.reads, statistics.reads[::4])
    whole, part = (stored_error(each, np.round(each), of) for each, of in ((weights, statistics), (some, of_some)))
    assert 4 * part == pytest.approx(whole, rel=0.1)
    assert some_rows(WEIGHTS[name], None, 10**9)[0] is WEIGHTS[name]
