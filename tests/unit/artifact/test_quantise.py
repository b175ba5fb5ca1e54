"""Which way each tensor is stored, what is refused by name, and bytes by planes."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.artifact import dequantise, quantise
from shared.artifact.layout import from_byte_planes, plan_layout, to_byte_planes
from shared.artifact.quantise import storages_of
from shared.errors import ArtifactError
from shared.model.manifest import Initial, Parameter, QuantisationClass
from shared.quantisers import QUANTISERS, InputStatistics, LowRank, Parts, QuantisedTensor, RowMax
from shared.spec import ArtifactSpec
from shared.spec.artifact import matches
from tests.implementations import normal


def _parameter(name: str, kind: QuantisationClass, shape: tuple[int, ...]) -> Parameter:
    return Parameter(name, shape, Initial("constant"), "matrix", kind)


def _quantise(weights: np.ndarray, kind: QuantisationClass = "matrix", name: str = "w", **more: Any) -> QuantisedTensor:
    storages = storages_of([_parameter(name, kind, weights.shape)], ArtifactSpec())
    return quantise({name: weights}, storages, **more)[name]


def test_the_last_pattern_that_matches_a_name_comes_before_the_class():
    rules = [{"pattern": "layers.*", "bits": 4}, {"pattern": "layers.?.up", "bits": 5}, {"pattern": "none", "bits": 7}]
    spec = ArtifactSpec.model_validate({"tensors": rules, "matrix": {"bits": 8}})
    manifest = [_parameter(name, "matrix", (2, 3)) for name in ("layers.0.up", "layers.10.up", "head")]
    assert [storage.bits for storage in storages_of(manifest, spec).values()] == [5, 4, 8]


@given(name=st.text("ab.", max_size=9), pattern=st.text("ab.*?", max_size=6))
def test_patterns_match_as_those_of_a_shell(name: str, pattern: str):
    assert matches(name, pattern) == fnmatchcase(name, pattern)


def test_the_largest_errors_keep_their_corrections():
    spec = ArtifactSpec.model_validate({"matrix": {"lqer_rank": 2, "bits": 4}})
    weights = {name: np.float32(size) * normal(size, 6, 8) for name, size in (("a", 1), ("b", 5), ("c", 3), ("d", 2))}
    weights["stack"] = 9 * normal(9, 2, 6, 8)
    storages = storages_of([_parameter(name, "matrix", weights[name].shape) for name in weights], spec)
    assert {name for name in storages if isinstance(storages[name], LowRank)} == set("abcd")
    for count, corrected in ((0, set()), (2, set("bc")), (None, set("abcd"))):
        tensors = quantise(weights, storages, lqer_tensors=count)
        assert {name for name in tensors if isinstance(tensors[name].storage, LowRank)} == corrected
        assert list(tensors) == list(weights) and tensors["b"].parts["codes"].shape == (6, 8)
    np.testing.assert_array_equal(tensors["a"].parts["lqer_b"], storages["a"].encode(weights["a"])["lqer_b"])


def test_a_tensor_without_a_gram_is_rounded_and_the_table_says_so():
    spec = ArtifactSpec.model_validate({"embed": {"rounding": "gptq"}, "matrix": {"rounding": "gptq"}})
    kinds = {"m": "matrix", "tied": "embedding", "table": "embedding", "experts": "matrix"}
    shapes = dict.fromkeys(kinds, (3, 4)) | {"experts": (2, 3, 4)}
    manifest = [_parameter(name, kind, shapes[name]) for name, kind in kinds.items()]
    weights = {parameter.name: normal(index, *parameter.shape) for index, parameter in enumerate(manifest)}
    seen = dict.fromkeys(["m", "tied"], InputStatistics(5, np.eye(4) + 0.5, np.ones(3, int)))
    seen |= {"table": InputStatistics(reads=np.ones(3, int)), "experts": InputStatistics()}
    tensors = quantise(weights, storages_of(manifest, spec), seen)
    said = {
        entry.name: entry.to_json()["quantiser"].get("rounding")
        for entry in plan_layout(manifest, {name: tensor.storage for name, tensor in tensors.items()}).tensors
    }
    assert said == {"m": "gptq", "tied": "gptq", "table": None, "experts": None}
    with pytest.raises(ArtifactError, match="tensor m: method row_max needs statistics of its inputs, there are none"):
        quantise(weights, storages_of(manifest, spec))


def test_classes_choose_the_bits_and_vectors_stay_float32():
    spec = ArtifactSpec.model_validate({"matrix": {"bits": 6}, "embed": {"bits": 8}, "head": {"bits": 6}})
    matrix, vector = np.ones((2, 3), np.float32), np.float32([1e-42, -0.0, 3.1])
    weights = {"m": matrix, "e": matrix, "h": matrix, "c": matrix, "v": vector}
    kinds = {"m": "matrix", "e": "embedding", "h": "head", "c": "control", "v": "matrix"}
    manifest = [_parameter(name, kinds[name], weights[name].shape) for name in weights]
    tensors = quantise(weights, storages_of(manifest, spec))
    stored = {name: (tensor.storage.method, tensor.storage.bits) for name, tensor in tensors.items()}
    row_max = {name: ("row_max", bits) for name, bits in (("m", 6), ("e", 8), ("h", 6))}
    assert stored == {**row_max, "c": ("float32", 32), "v": ("float32", 32)}
    assert dequantise(tensors)["v"].tobytes() == vector.tobytes()


@pytest.mark.parametrize("kind", ["matrix", "control"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(kind: QuantisationClass, value: float):
    weights = np.zeros((3, 4), np.float32)
    weights[1, 2] = value
    with pytest.raises(ArtifactError, match=r"tensor layers\.0\.w: 1 of 12 weights are not finite"):
        _quantise(weights, kind, "layers.0.w")


def test_a_weight_beyond_float16_scales_and_another_dtype_are_refused():
    with pytest.raises(ArtifactError, match=r"tensor w: weight 1e\+30 is too large for int6"):
        _quantise(np.array([[1e30, 1]], np.float32))
    with pytest.raises(ArtifactError, match="tensor w: dtype float64, must be float32"):
        _quantise(np.zeros((2, 2)))


class Weighing(RowMax):
    """Stands for a method that reads statistics: halves the columns that no input reaches."""

    needs_statistics = True

    def encode(self, weights: np.ndarray, statistics: InputStatistics | None = None) -> Parts:
        assert statistics is not None and statistics.gram is not None
        return super().encode(np.where(np.diag(statistics.gram) > 0, weights, weights / 2).astype(np.float32))


def test_a_method_that_needs_statistics_gets_those_of_its_tensor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(QUANTISERS, "row_max", lambda settings, bits: Weighing(bits))
    weights = np.array([[31.0, 30.0]], np.float32)
    with pytest.raises(ArtifactError, match="tensor w: method row_max needs statistics of its inputs, there are none"):
        _quantise(weights, statistics={"other": InputStatistics()})
    tensor = _quantise(weights, statistics={"w": InputStatistics(1, np.diag([1.0, 0.0]))})
    assert tensor.parts["codes"].tolist() == [[31, 15]]


@given(raw=st.binary(max_size=64), item_bytes=st.sampled_from([1, 2, 4]))
def test_byte_planes_round_trip(raw: bytes, item_bytes: int):
    raw = raw[: len(raw) // item_bytes * item_bytes]
    assert from_byte_planes(to_byte_planes(raw, item_bytes), item_bytes) == raw


def test_byte_planes_put_equal_bytes_together():
    assert to_byte_planes(b"aAaBaC", 2) == b"aaaABC"
    assert to_byte_planes(b"1234abcd", 4) == b"1a2b3c4d"
