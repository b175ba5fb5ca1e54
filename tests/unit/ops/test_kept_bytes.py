"""What the gradient of every verb reads, as shapes say it, against what torch saves: equal to the byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shared.ops import Ops, ShapeOps
from shared.ops.protocol import Ops as Protocol
from tests.implementations import OPS
from tests.measured_memory import saved_storages

TORCH = OPS["torch"]
X, WIDE, SQUARES, LOGITS = (2, 6, 8), (2, 6, 12), (2, 3, 4, 4), (2, 6, 20)
Q, K = (2, 6, 4, 8), (2, 6, 2, 8)
UP, DOWN = (12, 8), (8, 12)
SYMBOLS, TABLE = (2, 6), (20, 8)

# verb, shapes of what it reads as activations, and as weights; integers last, as `symbols`.
Case = tuple[Callable[..., Any], list[tuple[int, ...]], list[tuple[int, ...]]]
CASES: dict[str, Case] = {
    "cast": (lambda o, x, s: o.cast(x, "bfloat16") * o.cast(x, "float32"), [X], []),
    "cast_like": (lambda o, x, w, s: o.cast_like(w, x) * x, [X], [(8,)]),
    "linear": (lambda o, x, w, s: o.linear(x, w), [X], [UP]),
    "embedding": (lambda o, w, s: o.embedding(w, s, "float32"), [], [TABLE]),
    "embedding_sum": (lambda o, w, s: o.embedding_sum([w, 2.0 * w], [s, s], "bfloat16"), [], [TABLE]),
    "rms_norm": (lambda o, x, s: o.rms_norm(x, 1e-6), [X], []),
    "rope": (lambda o, q, s: o.rope(q, 1e4), [Q], []),
    "attention": (lambda o, q, k, v, s: o.attention(q, k, v), [Q, K, K], []),
    "attention in a window": (lambda o, q, k, v, s: o.attention(q, k, v, 3), [Q, K, K], []),
    "attention in documents": (lambda o, q, k, v, s: o.attention(q, k, v, 3, s), [Q, Q, Q], []),
    "leaky_relu_squared_mlp": (lambda o, x, u, d, s: o.leaky_relu_squared_mlp(x, u, d, 0.5), [X], [UP, DOWN]),
    "softcapped_cross_entropy": (lambda o, x, s: o.softcapped_cross_entropy(x, s, 30.0), [LOGITS], []),
    "softcapped_log_softmax": (lambda o, x, s: o.softcapped_log_softmax(x, 30.0), [LOGITS], []),
    "softcapped_logsumexp": (lambda o, x, s: o.softcapped_logsumexp(x, 30.0), [LOGITS], []),
    "concatenate": (lambda o, x, y, s: o.concatenate([x, y], -1), [X, WIDE], []),
    "stack": (lambda o, x, y, s: o.stack([x, y]), [X, X], []),
    "broadcast_to": (lambda o, x, y, s: o.broadcast_to(x, X) * y, [(8,), X], []),
    "transpose": (lambda o, x, y, s: o.transpose(x) * o.transpose(y), [X, X], []),
    "sum": (lambda o, x, s: o.sum(x, axes=(1,), keepdims=True) * x, [X], []),
    "sqrt": (lambda o, x, s: o.sqrt(x), [X], []),
    "sigmoid": (lambda o, x, s: o.sigmoid(x), [X], []),
    "exp": (lambda o, x, s: o.exp(x), [X], []),
    "log": (lambda o, x, s: o.log(x), [X], []),
    "softplus": (lambda o, x, s: o.softplus(x), [X], []),
    "running_sum": (lambda o, x, s: o.running_sum(x, axis=1), [X], []),
    "lower_triangle": (lambda o, x, s: o.lower_triangle(x), [SQUARES], []),
    "running_count": (lambda o, x, s: o.running_count(s, 0)[..., None] * x, [X], []),
    "relu": (lambda o, x, s: o.relu(x), [X], []),
    "unit_step": (lambda o, x, s: o.unit_step(x) * x, [X], []),
    "minimum": (lambda o, x, s: o.minimum(x, 1.0), [X], []),
    "softmax": (lambda o, x, s: o.softmax(x), [X], []),
    "power": (lambda o, x, s: o.power(x, 2.5), [X], []),
    "largest": (lambda o, x, s: o.largest(x), [X], []),
    "round": (lambda o, x, s: o.round(o.stop_gradient(x)) * x, [X], []),
    "float16": (lambda o, x, s: o.float16(o.stop_gradient(x)) * x, [X], []),
    "stop_gradient": (lambda o, x, s: o.stop_gradient(x) * x, [X], []),
    "row_noise": (lambda o, x, s: o.row_noise(x, s[0, 0], 1) + x, [X], []),
    "gained_linear": (lambda o, x, w, g, s: o.gained_linear(x, w, g), [X], [UP, (12,)]),
    "gained_mlp": (lambda o, x, u, d, g, s: o.gained_mlp(x, u, d, 0.5, g), [X], [UP, DOWN, (8,)]),
    "residual_norm": (lambda o, x, y, z, m, s: sum(o.residual_norm(x, y, z, m, 1e-6)), [X, X, X], [(2, 8)]),
    "normed_mlp": (
        lambda o, x, y, u, d, g, s: sum(o.normed_mlp(x, y, u, d, 0.5, g, 0.7, 1e-6)),
        [X, X],
        [UP, DOWN, (8,)],
    ),
    "shift_right": (lambda o, x, y, s: o.shift_right(x, y[:, :1]), [X, X], []),
    "delayed": (lambda o, x, y, s: o.delayed(x, y[:, :2]), [X, X], []),
    "lookback": (lambda o, x, y, s: o.lookback(x, y[:, :1], 3), [X, X], []),
    "symbol_context": (
        lambda o, e, f, p, s: o.symbol_context(e, f, p, s, "bfloat16"),
        [],
        [(9, 8), (2, 1, 8), (8, 24)],
    ),
    "symbol_context of few": (
        lambda o, e, f, p, s: o.symbol_context(e, f, p, s, "float32"),
        [],
        [(12, 8), (2, 1, 8), (8, 24)],
    ),
    "recurrent": (lambda o, x, y, s: o.recurrent(lambda o, x, y: x * y, None, (x, y)), [X, X], []),
    "attention_inputs": (
        lambda o, x, q, k, v, g, s: o.concatenate(o.attention_inputs(x, (q, k, v), g, 0, 1e4, 1e-6), -2),
        [X],
        [(32, 8), (16, 8), (16, 8), (4,)],
    ),
    "self_attention": (
        lambda o, x, q, k, v, g, s: o.self_attention(x, (q, k, v), g, 0, 1e4, 1e-6),
        [X],
        [(32, 8), (16, 8), (16, 8), (4,)],
    ),
    "plus": (lambda o, x, y, s: x + y - 1.0, [X, X], []),
    "times": (lambda o, x, y, s: 2.0 * (x * y), [X, (8,)], []),
    "divided": (lambda o, x, y, s: x / y, [X, X], []),
    "one divided": (lambda o, x, s: 1.0 / x, [X], []),
    "negative": (lambda o, x, s: -x, [X], []),
    "product": (lambda o, x, y, s: x @ y, [SQUARES, SQUARES], []),
    "product, one for all": (lambda o, x, y, s: x @ y, [SQUARES, (2, 1, 4, 5)], []),
    "product, turned": (lambda o, x, s: x @ o.transpose(x), [X], []),
    "a slice": (lambda o, x, y, s: x[:, :, 2:5] * y[..., :3], [X, X], []),
    "a slice in a product": (lambda o, x, w, s: o.linear(x[:, 1:, :8], w), [WIDE], [UP]),
    "a slice of heads": (lambda o, x, s: x[..., 4:].reshape((2, 6, 2, 4)) * 1.5 * x[..., :1, None], [WIDE], []),
    "columns for rows": (lambda o, x, y, s: o.transpose(x).reshape((2, 48)) * y, [X, (2, 48)], []),
    "made of columns": (lambda o, x, y, s: (o.transpose(x) * o.transpose(y)).reshape((2, 48)) * 1.0, [X, X], []),
}


def kept(ops: Ops, case: Case, arrays: list[Any], symbols: Any, dtype: str) -> Any:
    """The verb on activations in `dtype`, each made of an array, and on weights as they are."""
    verb, activations, _ = case
    count = len(activations)
    return verb(ops, *(ops.cast(array, dtype) + 0.5 for array in arrays[:count]), *arrays[count:], symbols)


# Of float32 alone; torch's norm reads bfloat16 itself on a GPU, and a float32 copy on a CPU.
ONLY_FLOAT32 = (
    "rms_norm",
    "residual_norm",
    "normed_mlp",
    "attention_inputs",
    "self_attention",
    "float16",
    "round",
    "row_noise",
)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in CASES] + [(name, "bfloat16") for name in CASES if name not in ONLY_FLOAT32],
)
def test_what_a_gradient_reads_is_what_torch_saves(name: str, dtype: str) -> None:
    case = CASES[name]
    shapes = case[1] + case[2]
    ops = ShapeOps()
    params, symbols = [ops.array(shape, traced=True) for shape in shapes], ops.array(SYMBOLS)
    said = ops.kept_bytes(kept(ops, case, params, symbols, dtype), [*params, symbols])

    leaves = [torch.rand(shape, requires_grad=True) for shape in shapes]
    x = torch.zeros(SYMBOLS, dtype=torch.int32)
    kept(TORCH, case, leaves, x, dtype)  # Makes the tables that stay.
    tables = saved_storages(lambda: TORCH.rope(leaves[0].to(getattr(torch, dtype)), 1e4)) if name == "rope" else (0, {})
    _, saved = saved_storages(lambda: kept(TORCH, case, leaves, x, dtype))
    beside = {leaf.untyped_storage().data_ptr() for leaf in [*leaves, x]} | set(tables[1])
    assert said == sum(size for address, size in saved.items() if address not in beside)


def test_every_verb_has_a_case() -> None:
    verbs = {name for name in vars(Protocol) if not name.startswith("_")} - {"asarray", "to_numpy", "name"}
    assert verbs <= {name.split(" ")[0] for name in CASES}


def test_scores_are_kept_where_an_engine_does() -> None:
    sizes = []
    for ops in (ShapeOps(), ShapeOps(keeps_scores=True)):
        q, k, v = (ops.array(shape, traced=True) for shape in (Q, K, K))
        sizes.append(ops.kept_bytes(ops.attention(q, k, v)))
    pairs = 6 * 7 // 2
    assert sizes[1] - sizes[0] == 4 * 2 * 4 * pairs


def test_what_leads_to_no_loss_is_not_kept() -> None:
    ops = ShapeOps()
    x = ops.array(X, traced=True)
    ops.exp(x)
    assert ops.kept_bytes(ops.exp(x)) == 4 * 2 * 6 * 8
