"""Bits of the codes of the matrices, softened: `training.loss.code_entropy` (docs/techniques.md 8.7)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.manifest import Parameter, parameter_manifest
from shared.model.stages import CODE_ENTROPY_ROW
from shared.ops import Array, Ops
from shared.quantisers import Quantiser, quantiser
from shared.quantisers.code_lengths import NUM_BINS, UNSEEN, bin_positions, expected_bits, shares_of_bins
from shared.quantisers.row_grid import nearest_codes
from shared.spec import Spec

LEAST_SHARE = 1e-9


def code_entropy_bits(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """Mean bits per weight of the softened codes under the coder of the artifact, a float32 scalar. x [B, T] only gives
    the kind of array."""
    matrices = coded_matrices(spec)
    alike: dict[int, list[Parameter]] = {}
    for each in matrices:
        alike.setdefault(_quantiser(spec, each).code_limit, []).append(each)
    counts = [_soft_counts(ops, spec, params, group, limit, x) for limit, group in alike.items()]
    if spec.artifact.codec == "range":
        bits = expected_bits(ops, _together(ops, counts), UNSEEN)
    else:
        in_all = [ops.sum(found, axes=(-1,), keepdims=True) for found in counts]
        each_bits = [expected_bits(ops, found, LEAST_SHARE * size) for found, size in zip(counts, in_all, strict=True)]
        bits = ops.sum(ops.stack(each_bits))
    return bits / sum(each.count for each in matrices)


def coded_matrices(spec: Spec) -> list[Parameter]:
    """The parameters that the artifact stores in the codes of matrices."""
    return [each for each in parameter_manifest(spec) if each.quantisation == "matrix" and len(each.shape) == 2]


def _quantiser(spec: Spec, parameter: Parameter) -> Quantiser:
    return quantiser(spec.artifact.settings_of(parameter.name, "matrix"))


def _soft_counts(
    ops: Ops, spec: Spec, params: Mapping[str, Array], matrices: list[Parameter], limit: int, x: Array
) -> Array:
    """How often each code of some matrices occurs in each context, from the rows that this step looks at:
    [N, 2 limit + 1] with N contexts, NUM_BINS or, to brotli, the matrices.

    All of them in one product: a graph that did it for each would take minutes to compile.
    """
    ranged, num_codes = spec.artifact.codec == "range", 2 * limit + 1
    num_contexts = NUM_BINS if ranged else len(matrices)
    stride = spec.training.loss.code_entropy.row_stride
    most = max(num_codes, num_contexts, *(-(-each.shape[0] // stride) for each in matrices))
    # 0, 1, 2, ... in x's kind of integers, whatever x holds.
    number = ops.running_count(ops.broadcast_to(0 * x[:1, :1], (1, most)), 0)[0] - 1
    first = ops.cast_like(params[CODE_ENTROPY_ROW], x) if CODE_ENTROPY_ROW in params else 0 * x[0, 0]
    codes, positions, weights = [], [], []
    for place, each in enumerate(matrices):
        rows, looked_at = each.shape[0], -(-each.shape[0] // stride)
        index = (number[:looked_at] * stride + first) % rows
        in_codes = _quantiser(spec, each).in_steps(ops, params[each.name])
        seen = ops.embedding(in_codes, index, "float32").reshape((-1,))
        constant = 0 * ops.stop_gradient(seen)
        codes.append(seen)
        weights.append(constant + rows / looked_at)
        at = _positions(ops, ops.stop_gradient(in_codes), limit, index).reshape((-1,)) if ranged else constant + place
        positions.append(at)
    apart = ops.concatenate(codes, axis=0)[:, None]
    apart = apart - ops.cast_like(number[:num_codes] - limit, apart)
    soft = ops.softmax(-apart * apart / spec.training.loss.code_entropy.temperature)
    contexts = ops.cast_like(number[:num_contexts], apart)
    shares = shares_of_bins(ops, ops.concatenate(positions, axis=0), contexts)
    return ops.transpose(shares * ops.concatenate(weights, axis=0)[:, None]) @ soft


def _positions(ops: Ops, in_codes: Array, limit: int, index: Array) -> Array:
    """Where the codes of some rows lie on the scale of bins [R, C], by whole rows and whole columns."""
    codes = nearest_codes(ops, in_codes, 1.0, limit)
    sizes = ops.relu(codes) + ops.relu(-codes)
    by_row = ops.embedding(ops.sum(sizes, axes=(1,), keepdims=True), index, "float32")
    return bin_positions(ops, by_row, ops.sum(sizes, axes=(0,), keepdims=True))


def _together(ops: Ops, counts: list[Array]) -> Array:
    """The counts of all matrices, whose codes may be of different widths: [N, K]."""
    widest = max(found.shape[-1] for found in counts)
    total = None
    for found in counts:
        if rest := (widest - found.shape[-1]) // 2:
            edge = 0 * ops.broadcast_to(found[:, :1], (found.shape[0], rest))
            found = ops.concatenate([edge, found, edge], axis=1)
        total = found if total is None else total + found
    return total
