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
    counts = [_soft_counts(ops, spec, params, each, x) for each in matrices]
    if spec.artifact.codec == "range":
        bits = expected_bits(ops, _together(ops, counts), UNSEEN)
    else:
        bits = ops.sum(
            ops.stack(
                [
                    expected_bits(ops, found, LEAST_SHARE * each.count)
                    for each, found in zip(matrices, counts, strict=True)
                ]
            )
        )
    return bits / sum(each.count for each in matrices)


def coded_matrices(spec: Spec) -> list[Parameter]:
    """The parameters that the artifact stores in the codes of matrices."""
    return [each for each in parameter_manifest(spec) if each.quantisation == "matrix" and len(each.shape) == 2]


def _soft_counts(ops: Ops, spec: Spec, params: Mapping[str, Array], parameter: Parameter, x: Array) -> Array:
    """How often each code of a matrix occurs in each context, from the rows that this step looks at: [N, 2 limit + 1]
    with N contexts, one of brotli or NUM_BINS."""
    entropy, (rows, columns) = spec.training.loss.code_entropy, parameter.shape
    coded = quantiser(spec.artifact.settings_of(parameter.name, "matrix"))
    looked_at, num_codes = -(-rows // entropy.row_stride), 2 * coded.code_limit + 1
    # 0, 1, 2, ... in x's kind of integers, whatever x holds.
    number = ops.running_count(ops.broadcast_to(0 * x[:1, :1], (1, max(looked_at, num_codes, NUM_BINS))), 0)[0] - 1
    first = ops.cast_like(params[CODE_ENTROPY_ROW], x) if CODE_ENTROPY_ROW in params else 0 * x[0, 0]
    index = (number[:looked_at] * entropy.row_stride + first) % rows
    in_codes = coded.in_steps(ops, params[parameter.name])
    codes = ops.cast_like(number[:num_codes] - coded.code_limit, in_codes)
    apart = ops.embedding(in_codes, index, "float32")[..., None] - codes
    soft = ops.softmax(-apart * apart / entropy.temperature).reshape((looked_at * columns, num_codes))
    if spec.artifact.codec == "range":
        positions = _positions(ops, coded, ops.stop_gradient(in_codes), index)
        shares = shares_of_bins(ops, positions, ops.cast_like(number[:NUM_BINS], in_codes))
        counts = ops.transpose(shares.reshape((looked_at * columns, NUM_BINS))) @ soft
    else:
        counts = ops.sum(soft, axes=(0,), keepdims=True)
    return (rows / looked_at) * counts


def _positions(ops: Ops, coded: Quantiser, in_codes: Array, index: Array) -> Array:
    """Where the codes of some rows lie on the scale of bins [R, C], by whole rows and whole columns."""
    codes = nearest_codes(ops, in_codes, 1.0, coded.code_limit)
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
