"""The facts of the tensors of an artifact: their bytes add up to the file, their histograms to their codes."""

from __future__ import annotations

import numpy as np
import pytest

from shared.artifact import entropy_bits, pack_bytes, unpack_bytes
from shared.artifact.inspection import HISTOGRAM_BARS, histogram_text, inspect_artifact
from shared.model import parameter_manifest, random_weights
from shared.spec import load_spec
from tests.implementations import normal


def test_the_bytes_of_all_tensors_and_the_header_are_the_file() -> None:
    spec = load_spec("tiny")
    artifact = unpack_bytes(pack_bytes(spec, random_weights(spec, 3)))
    facts = inspect_artifact(artifact)
    assert [each.name for each in facts] == [parameter.name for parameter in parameter_manifest(spec)]
    total = sum(each.stored_bytes for each in facts) + artifact.info.header_bytes
    assert total == pytest.approx(artifact.info.artifact_bytes)
    for each in facts:
        codes = artifact.tensors[each.name].parts.get("codes")
        assert (codes is None) == (each.code_bits is None) == (each.entropy_bits is None) == (not each.histogram)
        if codes is not None:
            assert each.entropy_bits == entropy_bits(codes) and sum(each.histogram) == codes.size == each.weights


def test_gaussian_weights_have_the_entropy_that_is_predicted_and_a_tensor_of_less_has_fewer_bytes() -> None:
    spec = load_spec("tiny")
    weights = {name: normal(seed, *value.shape) for seed, (name, value) in enumerate(random_weights(spec, 0).items())}
    name, other = (f"layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    weights[name] = weights[name] ** 5
    facts = {each.name: each for each in inspect_artifact(unpack_bytes(pack_bytes(spec, weights)))}
    assert facts[other].entropy_bits == pytest.approx(facts[other].gaussian_bits, abs=0.1)
    assert facts[name].entropy_bits < facts[other].entropy_bits - 1.0
    assert facts[name].stored_bytes < facts[other].stored_bytes
    assert facts[other].code_bits == pytest.approx(facts[other].entropy_bits, rel=0.05)


@pytest.mark.parametrize("settings", [("method=sd_clip", "clip_sd=10"), ("method=uniform", "step=0.4")])
def test_steps_by_deviation_are_found_in_the_file(settings: tuple[str, ...]) -> None:
    spec = load_spec("tiny", ["artifact.codec=range", *(f"artifact.matrix.{setting}" for setting in settings)])
    weights = {
        name: 7 * normal(seed, *value.shape) for seed, (name, value) in enumerate(random_weights(spec, 0).items())
    }
    facts = {each.name: each for each in inspect_artifact(unpack_bytes(pack_bytes(spec, weights)))}
    found = facts["layers.0.mlp.up_proj.weight"]
    assert found.entropy_bits == pytest.approx(found.gaussian_bits, abs=0.1)


def test_the_histogram_is_symmetric_and_what_is_rare_shows() -> None:
    spec = load_spec("tiny")
    weights = random_weights(spec, 0)
    name = "layers.0.mlp.up_proj.weight"
    row = np.concatenate([np.zeros(weights[name].shape[1] - 1), [1.0]])
    weights[name] = np.tile(row, (weights[name].shape[0], 1)).astype(np.float32)
    facts = {each.name: each for each in inspect_artifact(unpack_bytes(pack_bytes(spec, weights)))}
    counts = facts[name].histogram
    assert len(counts) == HISTOGRAM_BARS and counts[-1] == weights[name].shape[0]
    assert counts[HISTOGRAM_BARS // 2] == weights[name].size - weights[name].shape[0]
    assert histogram_text((0, 1, 1000, 500)) == " \u2581\u2588\u2584"
