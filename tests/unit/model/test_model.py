"""The model: names, counts, groups, initial weights, and the forward pass against a plain one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from shared.engine.oracle import Oracle
from shared.model import initial_weights, parameter_counts, parameter_manifest, random_weights
from shared.model.initialise import named_generator
from shared.ops import NumpyOps
from shared.optim import initial_state
from shared.spec import Spec, load_spec, preset_names
from shared.tolerances import INITIAL_LOSS_ABS, ORACLE_OPERATION_REL
from tests.techniques import DECODERS, symbols, tiny

BLOCK = [
    "attn.q_proj.weight",
    "attn.k_proj.weight",
    "attn.v_proj.weight",
    "attn.o_proj.weight",
    "attn.q_gain",
    "attn.scale",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "mlp.scale",
]


every_decoder = pytest.mark.parametrize("case", list(DECODERS))


def test_names_of_tiny():
    """A contract: checkpoints and artifacts are read by these names."""
    expected = ["embed.weight", "embed.start", "embed.patch_proj.weight"]
    for layer in range(3):
        expected += [f"layers.{layer}.{name}" for name in BLOCK] + [f"layers.{layer}.resid_mix"]
    expected += ["skips.0.weight", "decoder.embed.weight", "decoder.start", "decoder.position"]
    expected += ["decoder.cond_proj.weight"] + [f"decoder.layers.0.{name}" for name in BLOCK]
    assert [parameter.name for parameter in parameter_manifest(load_spec("tiny"))] == expected


def test_names_and_shapes_of_itchy():
    shapes = {parameter.name: parameter.shape for parameter in parameter_manifest(load_spec("itchy"))}
    assert shapes["embed.weight"] == (260, 384)
    assert shapes["embed.patch_proj.weight"] == (384, 12 * 384)
    assert shapes["layers.10.attn.k_proj.weight"] == (4 * 48, 384)
    assert shapes["layers.0.resid_mix"] == (2, 384)
    assert shapes["layers.0.attn.q_gain"] == (8,)
    assert shapes["decoder.heads.11.up_proj.weight"] == (128, 384)
    assert shapes["decoder.heads.11.down_proj.weight"] == (260, 128)
    assert shapes["decoder.position"] == (12, 384)
    assert sum(name.startswith("skips.") for name in shapes) == 5
    assert "head.weight" not in shapes


def test_count_of_itchy_is_the_published_one_and_the_start_vector():
    assert parameter_counts(load_spec("itchy"))["total"] == 17_480_152 + 384 == 17_480_536


def test_counts_by_hand():
    dim, mlp, kv = 256, 768, 128
    block = 2 * dim * dim + 2 * kv * dim + 2 * mlp * dim
    assert parameter_counts(load_spec("bytes")) == {
        "matrix": 6 * block,
        "embedding": 256 * dim,
        "head": 0,
        "scalar": dim + 6 * (4 + 2 * dim + 2 * dim) + 3 * dim,
        "total": 6 * block + 257 * dim + 6 * (4 + 4 * dim) + 3 * dim,
    }


@pytest.mark.parametrize("source", [*preset_names(), *DECODERS])
def test_groups_and_quantisation_classes_cover_every_parameter(source: str):
    spec = tiny(*DECODERS[source]) if source in DECODERS else load_spec(source)
    manifest = parameter_manifest(spec)
    classes = {"matrix": "matrix", "embedding": "embedding", "head": "head", "scalar": "control"}
    for parameter in manifest:
        if (parameter.group, parameter.quantisation) == ("scalar", "embedding"):
            # The narrow matrix of a gate: Adam, but stored by row.
            assert len(parameter.shape) == 2 and parameter.name.endswith(".weight"), parameter
            continue
        assert parameter.quantisation == classes[parameter.group], parameter
        assert parameter.count == math.prod(parameter.shape) > 0
        assert (len(parameter.shape) == 2) or parameter.group == "scalar", parameter
        is_weight = parameter.name.endswith(".weight") and not parameter.name.startswith("skips.")
        assert is_weight == (parameter.group != "scalar"), parameter
    counts = parameter_counts(spec)
    assert counts.pop("total") == sum(counts.values()) == sum(parameter.count for parameter in manifest)
    weights = initial_weights(spec)
    state = initial_state(spec, weights)
    for parameter in manifest:
        kinds = {kind for kind in ("momentum", "first", "second") if f"{kind}/{parameter.name}" in state}
        assert kinds == ({"momentum"} if parameter.group == "matrix" else {"first", "second"})
        assert (f"average/{parameter.name}" in state) == (spec.training.ema_decay > 0)


@every_decoder
def test_first_loss_is_the_logarithm_of_the_vocabulary(case: str):
    spec = tiny(*DECODERS[case])
    oracle, x, uniform = Oracle(spec, initial_weights(spec)), symbols(spec, 2), math.log(spec.vocabulary.size)
    assert abs(oracle.score(x).mean() - uniform) <= INITIAL_LOSS_ABS
    if not spec.model.tie_embeddings:
        assert np.abs(oracle.log_probs(x) + uniform).max() <= ORACLE_OPERATION_REL


def test_initial_values():
    spec = load_spec("smoke")
    weights = initial_weights(spec)
    for name, value in weights.items():
        assert value.dtype == np.float32
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            assert not value.any(), name
        elif name.endswith("_proj.weight"):
            bound = value.shape[1] ** -0.5
            assert np.abs(value).max() <= bound and value.std() == pytest.approx(bound / 3**0.5, rel=0.05), name
        elif name.endswith("q_gain"):
            assert (value == 1.5).all()
        elif name == "ngram_embed.scale":
            assert (value == 0.5).all()
        elif name.endswith("scale") or name.startswith("skips."):
            assert (value == 1.0).all()
        elif name.endswith("resid_mix"):
            assert (value[0] == 1.0).all() and not value[1].any()
    assert weights["embed.weight"].std() == pytest.approx(0.005, rel=0.05)
    assert weights["embed.start"].any() and weights["decoder.position"].any()


def test_every_parameter_has_a_stream_of_its_own():
    tiny = initial_weights(load_spec("tiny"))
    deeper = initial_weights(load_spec("tiny", ["model.num_layers=5", "model.decoder.num_layers=2"]))
    for name, value in tiny.items():
        assert (deeper[name] == value).all(), f"{name} moved when layers were added"
    again = initial_weights(load_spec("tiny"))
    assert all((again[name] == value).all() for name, value in tiny.items())
    other = initial_weights(load_spec("tiny", ["training.seed=1338"]))
    drawn = {name: value for name, value in tiny.items() if len(np.unique(value)) > 2}
    assert len(drawn) > 20
    assert all((other[name] != value).mean() > 0.99 for name, value in drawn.items())
    streams = [named_generator(seed, name).standard_normal(4000) for seed in (0, 1) for name in ("a", "b", "ab")]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 0.08


def test_random_weights_leave_nothing_at_zero():
    spec = load_spec("itchy")
    weights = random_weights(spec, 1)
    assert weights.keys() == initial_weights(spec).keys()
    for name, value in weights.items():
        assert value.dtype == np.float32 and value.all(), name
    assert (random_weights(spec, 2)["embed.start"] != weights["embed.start"]).all()


@every_decoder
def test_the_forward_pass_is_the_one_of_the_definition(case: str):
    """The oracle against a second one, written from docs/techniques.md 3 and 4 one vector at a time."""
    spec = tiny(*DECODERS[case])
    weights, x = random_weights(spec, 3), symbols(spec, 2)
    expected = np.stack([plain_log_probs(spec, weights, row) for row in x])
    actual = Oracle(spec, weights).log_probs(x)
    assert np.abs(actual - expected).max() <= 1e3 * ORACLE_OPERATION_REL


# A second model, on plain lists of vectors.


def rms(vector: np.ndarray, eps: float) -> np.ndarray:
    return vector / math.sqrt(float(vector @ vector) / len(vector) + eps)


def turned(vector: np.ndarray, position: int, base: float) -> np.ndarray:
    half = len(vector) // 2
    out = np.empty_like(vector)
    for i in range(half):
        angle = position * base ** (-2 * i / len(vector))
        out[i] = vector[i] * math.cos(angle) + vector[i + half] * math.sin(angle)
        out[i + half] = -vector[i] * math.sin(angle) + vector[i + half] * math.cos(angle)
    return out


def plain_block(
    spec: Spec, w: Mapping[str, np.ndarray], prefix: str, xs: list[np.ndarray], heads: int, groups: int, rotate: bool
) -> list[np.ndarray]:
    model = spec.model

    def projected(name: str, vector: np.ndarray, count: int) -> np.ndarray:
        return (w[f"{prefix}.attn.{name}.weight"] @ vector).reshape(count, -1)

    queries, keys, values = [], [], []
    for position, x in enumerate(xs):
        normed = rms(x, model.norm_eps)
        q = [rms(head, model.norm_eps) for head in projected("q_proj", normed, heads)]
        k = [rms(head, model.norm_eps) for head in projected("k_proj", normed, groups)]
        if rotate:
            q = [turned(head, position, model.rope_base) for head in q]
            k = [turned(head, position, model.rope_base) for head in k]
        queries.append([head * gain for head, gain in zip(q, w[f"{prefix}.attn.q_gain"], strict=True)])
        keys.append(k)
        values.append(projected("v_proj", normed, groups))
    out = []
    for position, x in enumerate(xs):
        read = []
        for head in range(heads):
            group = head * groups // heads
            query = queries[position][head]
            scores = [math.exp(query @ keys[s][group] / math.sqrt(len(query))) for s in range(position + 1)]
            read.append(sum(p / sum(scores) * values[s][group] for s, p in enumerate(scores)))
        attended = x + w[f"{prefix}.attn.scale"] * (w[f"{prefix}.attn.o_proj.weight"] @ np.concatenate(read))
        hidden = w[f"{prefix}.mlp.up_proj.weight"] @ rms(attended, model.norm_eps)
        hidden = np.array([z * z if z > 0 else (model.mlp_negative_slope * z) ** 2 for z in hidden])
        out.append(attended + w[f"{prefix}.mlp.scale"] * (w[f"{prefix}.mlp.down_proj.weight"] @ hidden))
    return out


def plain_trunk(spec: Spec, w: Mapping[str, np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    model = spec.model
    size, table = model.patch_size, w["embed.weight"]
    inputs = [w["embed.start"]]
    for patch in range(model.num_patches - 1):
        embedded = np.concatenate([table[symbol] for symbol in x[patch * size : (patch + 1) * size]])
        inputs.append(w["embed.patch_proj.weight"] @ embedded if size > 1 else embedded)
    x0 = [rms(vector, model.norm_eps) for vector in inputs]
    xs, half, skips = x0, model.num_layers // 2, []
    for layer in range(model.num_layers):
        if model.unet_skips and half <= layer < 2 * half:
            weight, skip = w[f"skips.{layer - half}.weight"], skips.pop()
            xs = [vector + weight * early for vector, early in zip(xs, skip, strict=True)]
        if model.resid_mix:
            keep, renew = w[f"layers.{layer}.resid_mix"]
            xs = [keep * vector + renew * first for vector, first in zip(xs, x0, strict=True)]
        xs = plain_block(spec, w, f"layers.{layer}", xs, model.num_heads, model.num_kv_heads, rotate=True)
        if layer < half:
            skips.append(xs)
    return [rms(vector, model.norm_eps) for vector in xs]


def plain_logits(spec: Spec, w: Mapping[str, np.ndarray], h: list[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    model, decoder, size = spec.model, spec.model.decoder, spec.model.patch_size
    logits: list[np.ndarray] = []
    for patch, trunk in enumerate(h):
        if decoder.kind == "linear":
            head = w["embed.weight"] if model.tie_embeddings else w["head.weight"]
            logits += list((head @ trunk).reshape(size, -1))
        elif decoder.kind == "mlp":
            for place in range(size):
                hidden = w[f"decoder.heads.{place}.up_proj.weight"] @ (trunk + w["decoder.position"][place])
                logits.append(w[f"decoder.heads.{place}.down_proj.weight"] @ np.maximum(hidden, 0.0))
        else:
            condition = (w["decoder.cond_proj.weight"] @ trunk).reshape(size, -1)
            zs = []
            for place in range(size):
                time = patch * size + place
                previous = w["decoder.start"] if time == 0 else w["decoder.embed.weight"][x[time - 1]]
                zs.append(condition[place] + rms(previous, model.norm_eps) + w["decoder.position"][place])
            for layer in range(decoder.num_layers):
                heads = decoder.num_heads
                zs = plain_block(spec, w, f"decoder.layers.{layer}", zs, heads, heads, rotate=False)
            head = w["decoder.embed.weight"] if model.tie_embeddings else w["head.weight"]
            logits += [head @ rms(z, model.norm_eps) for z in zs]
    return logits


def plain_log_probs(spec: Spec, weights: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """ln p of every symbol [T, V] in float64."""
    w = {name: NumpyOps().asarray(value) for name, value in weights.items()}
    out = []
    for logits in plain_logits(spec, w, plain_trunk(spec, w, x), x):
        capped = spec.model.logit_softcap * np.tanh(logits / spec.model.logit_softcap)
        out.append(capped - math.log(sum(math.exp(value) for value in capped)))
    return np.array(out)
