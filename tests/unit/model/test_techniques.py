"""What holds of every technique: causal, every parameter is read and learns, one graph, and an artifact holds it."""

from __future__ import annotations

import numpy as np
import pytest

from shared.artifact import pack_bytes, unpack_bytes
from shared.engine.oracle import Oracle
from shared.model import forward, parameter_manifest, random_weights, training_parameters
from shared.scoring.gradient_check import without_gradient
from shared.scoring.isolation import check_isolation
from shared.scoring.probe import make_probe
from shared.spec import Spec
from shared.tolerances import CAUSALITY_ABS, ORACLE_OPERATION_REL
from tests.implementations import assert_one_graph
from tests.techniques import TECHNIQUES, every_engine, symbols, tiny, trained

every_technique = pytest.mark.parametrize("technique", list(TECHNIQUES))


def silent(spec: Spec) -> list[str]:
    """Parameters that cannot matter: with one symbol in a patch the local attention sees one key."""
    if spec.model.patch_size > 1 or spec.model.decoder.kind != "autoregressive":
        return []
    return [f"decoder.layers.0.attn.{name}" for name in ("q_proj.weight", "k_proj.weight", "q_gain")]


@every_technique
def test_causal_and_every_parameter_matters(technique: str) -> None:
    spec = tiny(*TECHNIQUES[technique])
    weights, x = random_weights(spec, 4), symbols(spec, rows=1)
    oracle = Oracle(spec, weights)
    before = oracle.log_probs(x)
    for position in range(0, spec.model.seq_len, 5):
        changed = x.copy()
        changed[:, position:] = (changed[:, position:] + 7) % spec.vocabulary.size
        moved = np.abs(oracle.log_probs(changed) - before)[:, : position + 1]
        assert moved.max() <= ORACLE_OPERATION_REL
    if spec.model.attention.document_mask:
        assert check_isolation(oracle, make_probe(spec, x[0], 0)).passed
    for parameter in parameter_manifest(spec):
        value = weights[parameter.name]
        # Not all by one factor, which a norm behind it would take off again.
        other = value + 0.5 * np.random.default_rng(0).standard_normal(value.shape)
        after = Oracle(spec, {**weights, parameter.name: other}).log_probs(x)
        assert (np.abs(after - before).max() > CAUSALITY_ABS) != (parameter.name in silent(spec)), parameter.name


@pytest.mark.slow
@every_engine
@every_technique
def test_every_parameter_learns_from_the_first_steps(technique: str, name: str) -> None:
    spec = tiny(*TECHNIQUES[technique])
    engine = trained(name, spec, steps=4)
    gradients = engine.gradients(symbols(spec))[1]
    assert set(gradients) == {each.name for each in training_parameters(spec)}
    assert without_gradient(gradients) == silent(spec)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every_engine
@pytest.mark.parametrize(
    ("technique", "layers"),
    [("experts", 1), ("full gate", 3), ("hybrid", 3), ("n-grams", 1), ("factored tokens", 1), ("adapters", 1)],
)
def test_the_compiled_function_is_the_one_of_the_oracle(technique: str, layers: int, name: str) -> None:
    """For other lengths too: NTK gives each another base. Layers that are alike are one, as torch traces each anew."""
    spec = tiny(*TECHNIQUES[technique], f"model.num_layers={layers}")
    assert_one_graph(name, forward, spec, random_weights(spec, 6), symbols(spec, 2), symbols(spec, 2)[:, :24])


@every_technique
def test_an_artifact_holds_every_parameter(technique: str) -> None:
    spec = tiny(*TECHNIQUES[technique])
    packed = unpack_bytes(pack_bytes(spec, random_weights(spec, 0)))
    assert packed.spec == spec and list(packed.weights) == [each.name for each in parameter_manifest(spec)]
