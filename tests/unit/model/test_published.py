"""Models written again from public code, in plain NumPy: #1855 as a whole, and the mixers of mamba_ssm and fla.

The three implementations share the model's code, so a definition that is misread is misread in all of them; these
forms share nothing with it but the names of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from shared.engine.oracle import Oracle
from shared.model import random_weights
from shared.model.gated_delta import gated_delta
from shared.model.layer import Layer, TrunkContext, trunk_layer
from shared.model.mamba2 import mamba2
from shared.ops import NumpyOps
from shared.spec import load_spec
from shared.tolerances import ORACLE_OPERATION_REL
from tests.techniques import tiny

Weights = Mapping[str, np.ndarray]

DIM, HEADS, GROUPS, WIDTH, TURNED, LAYERS, EPS = 64, 4, 2, 16, 8, 6, 1e-6
START = 1
# A document begins in the middle and one near the end.
STARTS = (13, 22)
SMALL = (
    *(f"model.model_dim={DIM}", "model.mlp_dim=80", "model.seq_len=24"),
    *("training.batch_symbols=24", "evaluation.batch_symbols=24"),
)


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def rotated(x: np.ndarray) -> np.ndarray:
    """The first TURNED features of [T, heads, WIDTH] by minus theta, in halves."""
    half = TURNED // 2
    angle = np.arange(len(x))[:, None, None] / 10_000.0 ** (np.arange(0, TURNED, 2) / TURNED)
    first, second = x[..., :half], x[..., half:TURNED]
    turned = (first * np.cos(angle) + second * np.sin(angle), -first * np.sin(angle) + second * np.cos(angle))
    return np.concatenate([*turned, x[..., TURNED:]], axis=-1)


def published_attention(w: Weights, layer: int, x: np.ndarray, document: np.ndarray) -> np.ndarray:
    """[T, DIM] of the block's normalised input: exclusive attention within a document under a sparse gate."""
    q, k, v = (
        (x @ w[f"layers.{layer}.attn.{name}_proj.weight"].T).reshape(len(x), -1, WIDTH) for name in ("q", "k", "v")
    )
    q, k = rotated(rms(q)) * w[f"layers.{layer}.attn.q_gain"][:, None], rotated(rms(k))
    k, v = (np.repeat(each, HEADS // GROUPS, axis=1) for each in (k, v))
    scores = np.einsum("thc,shc->hts", q, k) / np.sqrt(WIDTH)
    position = np.arange(len(x))
    seen = (position <= position[:, None]) & (document == document[:, None])
    shares = np.where(seen, np.exp(scores - scores.max()), 0.0)
    y = np.einsum("hts,shc->thc", shares / shares.sum(axis=-1, keepdims=True), v)
    own = v / np.linalg.norm(v, axis=-1, keepdims=True)
    y = y - np.sum(y * own, axis=-1, keepdims=True) * own
    gate = sigmoid(0.5 * x[:, :12] @ w[f"layers.{layer}.attn.gate.weight"].T)
    y = (y * gate[..., None]).reshape(len(x), -1)
    return w[f"layers.{layer}.attn.scale"] * (y @ w[f"layers.{layer}.attn.o_proj.weight"].T)


def published_mlp(w: Weights, layer: int, x: np.ndarray) -> np.ndarray:
    hidden = x @ w[f"layers.{layer}.mlp.up_proj.weight"].T
    hidden = np.where(hidden > 0, hidden, 0.5 * hidden) ** 2
    return w[f"layers.{layer}.mlp.scale"] * (hidden @ w[f"layers.{layer}.mlp.down_proj.weight"].T)


def published_trunk(w: Weights, x0: np.ndarray, document: np.ndarray) -> np.ndarray:
    """Layers 2 and 3 three times; the first half of the order keeps its outputs, the second takes them through gates;
    from layer 4 on two lanes, which open before the skip."""
    order = [0, 1, 2, 3, 2, 3, 2, 3, 4, 5]
    half, kept, x, lanes = len(order) // 2, list[np.ndarray](), x0, list[np.ndarray]()

    def mixed(layer: int, x: np.ndarray) -> np.ndarray:
        keep, renew = w[f"layers.{layer}.resid_mix"]
        return np.asarray(keep * x + renew * x0)

    for place, layer in enumerate(order):
        scale = 1.0 / np.sqrt(layer + 1.0)
        if layer == 4:
            lanes = [x, x]
        if place >= half:
            skip = w[f"skips.{place - half}.weight"] * kept.pop()
            gate = sigmoid(w[f"skips.{place - half}.gate"])
            if lanes:
                lanes[0] = (1.0 - gate) * skip + gate * lanes[0]
            else:
                x = (1.0 - gate) * skip + gate * x
        if lanes:
            attention = published_attention(w, layer, scale * rms(mixed(layer, lanes[0])), document)
            mlp = published_mlp(w, layer, scale * rms(lanes[1]))
            keep, (to_attention, to_mlp) = w[f"layers.{layer}.lanes.resid"], w[f"layers.{layer}.lanes.post"]
            lanes = [keep[k] * lanes[k] + to_attention[k] * attention + to_mlp[k] * mlp for k in (0, 1)]
            continue
        x = mixed(layer, x)
        x = x + published_attention(w, layer, scale * rms(x), document)
        x = x + published_mlp(w, layer, scale * rms(x))
        if place < half:
            kept.append(x)
    return rms((lanes[0] + lanes[1]) / 2)


def test_the_system_of_pr1855():
    """The whole preset, made small: logits for every symbol of a window that holds two document starts."""
    spec = load_spec("pr1855-mini", list(SMALL))
    w = {name: np.float64(value) for name, value in random_weights(spec, 3).items()}
    x = np.random.default_rng(0).integers(4, spec.vocabulary.size, spec.model.seq_len).astype(np.int32)
    x[list(STARTS)] = START
    read = np.concatenate([[START], x[:-1]])
    embedded = w["embed.weight"][read]
    gate = w["embed.smear_scale"] * sigmoid(embedded[:, :12] @ w["embed.smear_gate.weight"].T)
    before = np.concatenate([np.zeros((1, DIM)), embedded[:-1]])
    embedded = embedded + gate * before * (read != START)[:, None]
    h = published_trunk(w, rms(embedded), np.cumsum(read == START))
    logits = 30.0 * np.tanh(h @ w["embed.weight"].T / 30.0)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    actual = Oracle(spec, w).log_probs(x[None])[0]
    # Both divide v by its length, here with norm_eps in it.
    assert np.abs(actual - expected).max() < 1e-4


# Mixers.


def convolved(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """silu of a causal convolution, taps[0] for the position itself."""
    padded = np.concatenate([np.zeros((len(taps) - 1, x.shape[1])), x])
    y = sum(tap * padded[len(taps) - 1 - back : len(padded) - back] for back, tap in enumerate(taps))
    return np.asarray(y * sigmoid(y))


def published_mamba2(w: Weights, u: np.ndarray, step: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """mamba_ssm: h = exp(dt A) h + dt B x, y = C h + D x, before its norm."""
    mixed = convolved(np.concatenate([u @ w[f"{name}_proj.weight"].T for name in "xbc"], axis=1), w["conv"])
    heads, width, groups, state = 4, 8, 2, 6
    x, b, c = np.split(mixed, [heads * width, heads * width + groups * state], axis=1)
    x = x.reshape(-1, heads, width)
    b, c = (np.repeat(each.reshape(-1, groups, state), heads // groups, axis=1) for each in (b, c))
    h, y = np.zeros((heads, width, state)), np.empty_like(x)
    for t in range(len(u)):
        h = decay[t][:, None, None] * h + np.einsum("h,hp,hn->hpn", step[t], x[t], b[t])
        y[t] = np.einsum("hpn,hn->hp", h, c[t]) + w["skip"][:, None] * x[t]
    return y


def published_gated_delta(w: Weights, u: np.ndarray, step: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """fla: S = a S, S = S + k (beta (v - S' k))', y = S' q / sqrt(C), before its norm; here C times as large."""
    mixed = convolved(np.concatenate([u @ w[f"{name}_proj.weight"].T for name in "qkv"], axis=1), w["conv"])
    q, k, v = (part.reshape(len(u), 4, 8) for part in np.split(mixed, 3, axis=1))
    q, k = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (q, k))
    beta = sigmoid(u @ w["strength_proj.weight"].T)
    s, y = np.zeros((4, 8, 8)), np.empty_like(v)
    for t in range(len(u)):
        s = decay[t][:, None, None] * s
        s = s + np.einsum("hk,hv->hkv", k[t], beta[t][:, None] * (v[t] - np.einsum("hkv,hk->hv", s, k[t])))
        y[t] = 8.0 * np.einsum("hkv,hk->hv", s, q[t] * 8.0**-0.5)
    return y


MIXERS: dict[str, tuple[Callable, Callable[[Layer, np.ndarray], np.ndarray], float]] = {
    "mamba2": (published_mamba2, mamba2, 100 * ORACLE_OPERATION_REL),
    # The length of a key is taken with norm_eps.
    "gated_delta": (published_gated_delta, gated_delta, 1e-3),
}


@pytest.mark.parametrize("kind", MIXERS)
def test_a_mixer_is_that_of_its_library_without_the_norm(kind: str):
    published, ours, limit = MIXERS[kind]
    mixers = f'model.mixers=["{kind}","attention"]'
    spec = tiny(mixers, "model.num_layers=2", "model.num_kv_heads=2", "model.state_dim=6")
    weights = {name: np.float64(value) for name, value in random_weights(spec, 5).items()}
    u = np.random.default_rng(0).standard_normal((70, spec.model.model_dim))
    w = {name.removeprefix(f"layers.0.{kind}."): value for name, value in weights.items()}
    step = np.log1p(np.exp(u @ w["step_proj.weight"].T + w["step_bias"]))
    y = published(w, u, step, np.exp(-np.exp(w["log_rate"]) * step)).reshape(len(u), -1)
    z = u @ w["z_proj.weight"].T
    expected = (y * z * sigmoid(z)) @ w["o_proj.weight"].T
    actual = ours(trunk_layer(NumpyOps(), spec.model, weights, 0, TrunkContext()), u[None])[0]
    assert np.abs(actual - expected).max() <= limit * np.abs(expected).max()
