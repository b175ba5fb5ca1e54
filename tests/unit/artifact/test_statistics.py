"""Input statistics against every product that a forward pass in plain NumPy makes with a weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from shared.artifact.statistics import input_statistics
from shared.model import forward, parameter_manifest, random_weights
from shared.model.adapters import with_adapters
from shared.model.manifest import ADAPTER_A, ADAPTER_B
from shared.ops import NumpyOps
from shared.quantisers import InputStatistics
from shared.spec import Spec, load_spec, with_overrides
from shared.tolerances import BF16_HIDDEN_REL, GRADIENT_SHARP_REL
from tests.implementations import ENGINES, OPS, every_implementation
from tests.parity.test_random_specs import specs


class Weight(np.ndarray):
    """A weight that notes what it is multiplied by, whichever operation does it."""

    def __array_finalize__(self, source: Any) -> None:
        self.inputs = getattr(source, "inputs", [])
        self.reads = getattr(source, "reads", [])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, np.ndarray):
            self.reads.append(index)
        return np.asarray(self)[index]

    def __array_ufunc__(self, ufunc: Any, method: str, *values: Any, **options: Any) -> Any:
        plain = [np.asarray(value) if isinstance(value, Weight) else value for value in values]
        if ufunc is np.matmul and isinstance(values[1], Weight) and values[1].flags.f_contiguous:
            self.inputs.append(plain[0])  # by W transposed: as a matrix, and not as the transpose of one
        return getattr(ufunc, method)(*plain, **options)


def direct(spec: Spec, weights: dict[str, np.ndarray], batches: list[np.ndarray]) -> dict[str, Weight]:
    """The weights, having noted all products of forward passes over batches; adapted ones by the name of the matrix."""
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    noted = {}
    for name, value in with_adapters(NumpyOps(), spec.model, exact).items():
        noted[name] = np.ascontiguousarray(value).view(Weight)
        noted[name].inputs, noted[name].reads = [], []
    for x in batches:
        forward(NumpyOps(), spec, noted, x)
    return noted


def batches_of(spec: Spec, count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, spec.vocabulary.size, (2, spec.model.seq_len)).astype(np.int32) for _ in range(count)]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected)), 1e-30))


def assert_is_direct(spec: Spec, found: dict[str, InputStatistics], weights: dict[str, np.ndarray], rel: float) -> None:
    """Every matrix of the manifest has what its own products give, and is without where they are apart or none."""
    noted = direct(spec, weights, batches_of(spec))
    matrices = {each.name: each for each in parameter_manifest(spec) if each.quantisation != "control"}
    assert found.keys() == matrices.keys()
    for name, statistics in found.items():
        weight = noted[name.replace(ADAPTER_A, ".weight").replace(ADAPTER_B, ".weight")]
        inputs = [each.reshape(-1, each.shape[-1]) for each in weight.inputs]
        apart = spec.model.decoder.kind == "experts" and name.startswith(("decoder.router", "decoder.experts"))
        if name.endswith(ADAPTER_B):
            inputs = [each @ weights[name.replace(ADAPTER_B, ADAPTER_A)].T for each in inputs]
        if apart or not inputs:
            assert statistics.gram is None and statistics.rows == 0
            assert apart or matrices[name].quantisation == "embedding", name
        else:
            assert statistics.gram is not None and statistics.rows == sum(map(len, inputs)), name
            assert relative(statistics.gram, sum(each.T @ each for each in inputs)) <= rel, name
            assert np.array_equal(statistics.gram, statistics.gram.T) and statistics.gram.dtype == np.float64
        reads = np.concatenate([index.reshape(-1) for index in weight.reads] or [np.empty(0, np.int64)])
        expected = np.bincount(reads, minlength=len(weight)) if len(reads) else None
        np.testing.assert_array_equal(statistics.reads, expected)
        assert statistics.gram is not None or statistics.reads is not None or apart, f"{name} has none"


@pytest.mark.slow
@every_implementation
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(spec=specs())
def test_statistics_of_random_specs_are_those_of_all_products(name: str, spec: Spec):
    weights = random_weights(spec, 3)
    found = input_statistics(OPS[name], spec, weights, batches_of(spec))
    assert_is_direct(spec, found, weights, 1e-12 if name == "numpy" else GRADIENT_SHARP_REL)


@every_implementation
def test_a_looped_layer_counts_all_its_passes(name: str):
    spec = load_spec("tiny", ["model.loop.last_layer=1", "model.loop.extra_loops=2"])
    found = input_statistics(OPS[name], spec, random_weights(spec, 3), batches_of(spec))
    inside, outside = (found[f"layers.{layer}.mlp.down_proj.weight"].rows for layer in (1, 2))
    assert inside == 3 * outside == 3 * 2 * 2 * spec.model.num_patches


def test_a_tied_table_is_both_looked_up_and_multiplied():
    spec = load_spec("tiny", ["model.tie_embeddings=true", "model.patch_size=1", "model.decoder.kind=linear"])
    found = input_statistics(OPS["numpy"], spec, random_weights(spec, 3), batches_of(spec))["embed.weight"]
    assert found.reads is not None and found.reads.sum() == found.rows == 4 * spec.model.seq_len


@pytest.mark.parametrize("name", ENGINES)
def test_activations_of_two_bytes_are_added_up_in_four(name: str):
    exact = load_spec("tiny", [])
    spec, weights = with_overrides(exact, ["training.dtype=bfloat16"]), random_weights(exact, 3)
    half, full = (input_statistics(OPS[name], each, weights, batches_of(exact)) for each in (spec, exact))
    for parameter, statistics in full.items():
        if statistics.gram is not None:
            gram = half[parameter].gram
            assert gram is not None and relative(gram, statistics.gram) <= BF16_HIDDEN_REL, parameter
