"""Every method in a file: packed with statistics of its own inputs, read back, and what the tensor table says of it."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from shared.artifact import assemble, dequantise, pack_bytes, quantise_model, unpack_bytes
from shared.artifact.statistics import input_statistics
from shared.errors import ArtifactError
from shared.model import random_weights
from shared.ops import NumpyOps
from shared.quantisers import LowRank, QuantisedTensor, RowMax
from shared.quantisers.gptq import error_on_inputs
from shared.quantisers.pruning import Pruning
from shared.spec import Spec, load_spec, spec_from_dict, spec_to_dict
from shared.spec.artifact import Method
from tests.techniques import symbols

BUILT = [method for method in get_args(Method) if method != "uniform"]
PLAIN = ("model.patch_size=1", "model.decoder.kind=linear")


def packed_as(artifact: dict[str, Any], *overrides: str) -> Spec:
    values = spec_to_dict(load_spec("tiny", overrides))
    return spec_from_dict({**values, "artifact": {**values["artifact"], **artifact}})


def statistics_of(spec: Spec, weights: dict[str, np.ndarray]) -> Any:
    return input_statistics(NumpyOps(), spec, weights, [symbols(spec, rows=4)])


def table(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row["quantiser"] for row in values["tensors"]}


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("method", BUILT)
def test_a_file_gives_back_what_was_packed(method: str, rounding: str):
    quantiser = {"method": method, "bits": 5, "rounding": rounding, "lqer_rank": 2, "group": 20, "hessian_clip": 0.1}
    spec = packed_as({"matrix": quantiser, "embed": {"method": "clip_search"}, "lqer_tensors": 2})
    weights = random_weights(spec, 3)
    statistics = statistics_of(spec, weights)
    content = pack_bytes(spec, weights, statistics=statistics)
    assert content == pack_bytes(spec, weights, statistics=statistics)
    artifact, expected = unpack_bytes(content), dequantise(quantise_model(spec, weights, statistics))
    for name, value in expected.items():
        assert artifact.weights[name].tobytes() == value.tobytes(), name
    rows = table(artifact.header)
    assert sum("lqer_rank" in row for row in rows.values()) == 2
    assert sum(isinstance(tensor.storage, LowRank) for tensor in artifact.tensors.values()) == 2
    assert {row["method"] for name, row in rows.items() if ".mlp.up_proj" in name} == {method}


@pytest.mark.parametrize("codec", ["brotli", "range"])
def test_a_trellis_comes_back_under_either_codec(codec: str):
    """With feedback where inputs are known, with tensors without a trellis in the same section."""
    matrix = {"method": "uniform", "step": 0.4, "rounding": "gptq", "trellis": 8, "lqer_rank": 2}
    table_of = {"method": "uniform", "step": 0.1, "trellis": 4}
    rule = {"pattern": "*.mlp.down_proj.weight", "method": "row_max", "bits": 6}
    spec = packed_as({"matrix": matrix, "embed": table_of, "tensors": [rule], "codec": codec, "lqer_tensors": 1})
    weights = random_weights(spec, 3)
    statistics = statistics_of(spec, weights)
    content = pack_bytes(spec, weights, statistics=statistics)
    artifact, expected = unpack_bytes(content), dequantise(quantise_model(spec, weights, statistics))
    for name, value in expected.items():
        assert artifact.weights[name].tobytes() == value.tobytes(), name
    rows = table(artifact.header)
    assert {row.get("trellis", 0) for row in rows.values()} == {0, 4, 8}
    assert {row["trellis"] for name, row in rows.items() if ".mlp.up_proj" in name} == {8}
    codecs = {row["name"]: row["codec"] for row in artifact.header["sections"]}
    assert codecs["matrix.codes"] == codec


@pytest.mark.parametrize("tied", [True, False])
def test_tied_tables_use_the_inputs_of_their_head_and_others_are_rounded(tied: bool):
    gptq = {"rounding": "gptq", "bits": 4}
    spec = packed_as({"matrix": gptq, "embed": gptq, "head": gptq}, *PLAIN, f"model.tie_embeddings={str(tied).lower()}")
    weights = random_weights(spec, 3)
    statistics = statistics_of(spec, weights)
    artifact = unpack_bytes(pack_bytes(spec, weights, statistics=statistics))
    said = {name: row.get("rounding") for name, row in table(artifact.header).items() if row}
    assert said.pop("embed.weight") == ("gptq" if tied else None)
    assert set(said.values()) == {"gptq"} and ("head.weight" in said) != tied
    for name in said:
        gram = statistics[name].gram / statistics[name].rows
        rounded = RowMax(4).decode(weights[name].shape, RowMax(4).encode(weights[name]))
        errors = [error_on_inputs(each - weights[name], gram) for each in (artifact.weights[name], rounded)]
        assert errors[0] < errors[1], name


def test_a_looped_layer_is_rounded_for_the_inputs_of_all_its_passes():
    looped = packed_as({"matrix": {"rounding": "gptq"}}, "model.loop.last_layer=1", "model.loop.extra_loops=2")
    once = packed_as({"matrix": {"rounding": "gptq"}})
    weights, name = random_weights(looped, 3), "layers.1.mlp.down_proj.weight"
    of_loop, of_pass = (statistics_of(spec, weights) for spec in (looped, once))
    assert of_loop[name].rows == 3 * of_pass[name].rows
    codes = [quantise_model(looped, weights, each)[name].parts["codes"] for each in (of_loop, of_pass)]
    assert (codes[0] != codes[1]).any()


def test_experts_have_no_inputs_of_their_own_and_say_so():
    spec = packed_as({"matrix": {"rounding": "gptq"}, "head": {"rounding": "gptq"}}, "model.decoder.kind=experts")
    weights = random_weights(spec, 3)
    statistics = statistics_of(spec, weights)
    rows = table(unpack_bytes(pack_bytes(spec, weights, statistics=statistics)).header)
    said = {name: rows[name].get("rounding") for name in statistics if statistics[name].gram is None}
    assert set(said.values()) == {None} and any(name.startswith("decoder.experts") for name in said)
    assert "gptq" in {row.get("rounding") for row in rows.values()}


def test_pruned_tensors_are_an_artifact_like_any_other():
    spec = packed_as({})
    tensors = quantise_model(spec, random_weights(spec, 3))
    pruning = Pruning(tensors)
    content, info = assemble(spec, pruning.pruned(pruning.count // 3))
    found = unpack_bytes(content).tensors
    gone = sum(int((found[name].parts["codes"] != tensors[name].parts["codes"]).sum()) for name in coded(tensors))
    assert gone == pruning.count // 3 > 0
    assert info.artifact_bytes < len(pack_bytes(spec, random_weights(spec, 3)))


def coded(tensors: dict[str, QuantisedTensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if "codes" in tensor.parts]


def test_gates_are_int8_by_row():
    spec = load_spec("pr1855")
    gates = {"layers.3.attn.gate.weight", "embed.smear_gate.weight"}
    for name in gates:
        settings = spec.artifact.settings_of(name, "embedding")
        assert (settings.method, settings.bits, settings.rounding) == ("row_max", 8, "nearest")
    assert spec.artifact.settings_of("layers.3.attn.q_proj.weight", "matrix").clip_sd == 13.0
    assert spec.artifact.settings_of("layers.3.mlp.up_proj.weight", "matrix").clip_sd == 11.5
    plain = load_spec("pr1855-mini").artifact.settings_of("layers.3.attn.gate.weight", "embedding")
    assert (plain.method, plain.bits) == ("row_max", 8)


def test_without_statistics_the_tensor_is_named():
    spec = packed_as({"matrix": {"rounding": "gptq"}})
    with pytest.raises(ArtifactError, match="method row_max needs statistics of its inputs, there are none"):
        pack_bytes(spec, random_weights(spec, 3))
