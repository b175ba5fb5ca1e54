"""Entropy of the codes of the matrices, softened: `training.loss.code_entropy` (docs/techniques.md 8.7)."""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.manifest import Parameter, parameter_manifest
from shared.model.stages import CODE_ENTROPY_ROW
from shared.ops import Array, Ops
from shared.quantisers import quantiser
from shared.spec import Spec

LEAST_SHARE = 1e-9
BITS_PER_NAT = 1.4426950408889634


def code_entropy_bits(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """Mean bits per weight of the softened codes, a float32 scalar. x [B, T] only gives the kind of array."""
    matrices = coded_matrices(spec)
    bits = ops.stack([each.count * _matrix_bits(ops, spec, params, each, x) for each in matrices])
    return ops.sum(bits) / sum(each.count for each in matrices)


def coded_matrices(spec: Spec) -> list[Parameter]:
    """The parameters that the artifact stores in the codes of matrices."""
    return [each for each in parameter_manifest(spec) if each.quantisation == "matrix" and len(each.shape) == 2]


def _matrix_bits(ops: Ops, spec: Spec, params: Mapping[str, Array], parameter: Parameter, x: Array) -> Array:
    """-sum p_k log2(p_k + 1e-9) of one matrix."""
    entropy = spec.training.loss.code_entropy
    coded = quantiser(spec.artifact.settings_of(parameter.name, "matrix"))
    limit = coded.code_limit
    rows, columns = parameter.shape
    looked_at = -(-rows // entropy.row_stride)
    # 0, 1, 2, ... in x's kind of integers, whatever x holds.
    number = ops.running_count(ops.broadcast_to(0 * x[:1, :1], (1, max(looked_at, 2 * limit + 1))), 0)[0] - 1
    first = ops.cast_like(params[CODE_ENTROPY_ROW], x) if CODE_ENTROPY_ROW in params else 0 * x[0, 0]
    index = (number[:looked_at] * entropy.row_stride + first) % rows
    weights = ops.embedding(params[parameter.name], index, "float32")
    in_codes = coded.in_steps(ops, weights)[..., None]
    codes = ops.cast_like(number[: 2 * limit + 1] - limit, weights)
    apart = in_codes - codes
    shares = ops.sum(ops.softmax(-apart * apart / entropy.temperature), axes=(0, 1)) / (looked_at * columns)
    return -BITS_PER_NAT * ops.sum(shares * ops.log(shares + LEAST_SHARE))
