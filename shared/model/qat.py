"""Quantisation-aware training: the weights that the training loss reads (docs/techniques.md 11.2).

Whether it acts is a number of the step, 0 or 1, that multiplies the change of every weight: a flag would be folded
into the compiled function, and in four published systems never acted.
"""

from __future__ import annotations

from collections.abc import Mapping

from shared.model.manifest import parameter_manifest
from shared.model.stages import QAT, QAT_STEP
from shared.ops import Array, Ops
from shared.quantisers import Quantiser, quantiser
from shared.spec import Spec

# Spreads the numbers of parameters over 32 bits, so that their noise starts far apart.
SALT_STEP = 0xC2B2_AE35


def training_weights(
    ops: Ops, spec: Spec, params: Mapping[str, Array], matrices: Mapping[str, int], x: Array
) -> dict[str, Array]:
    """params with the matrices as training sees them; without the step's numbers as at the end of training.

    `matrices`: from `quantised_matrices`. x [B, T] only gives the kind of array.
    """
    qat = spec.training.qat
    changed = dict(params)
    for name, salt in matrices.items():
        weight = params[name]
        if qat.form == "noise":
            step = params[QAT_STEP] if QAT_STEP in params else 0 * x[0, 0]
            change = ops.row_noise(weight, step, salt) / (2 ** (qat.bits - 1) - 1)
        else:
            change = training_grid(spec, name).rounding_error(ops, weight)
        changed[name] = weight + (params[QAT] * change if QAT in params else change)
    return changed


def training_grid(spec: Spec, name: str) -> Quantiser:
    """The grid whose nearest codes the training loss reads in place of a matrix, that of its artifact. Rounding by gptq
    and corrections of the error come after training."""
    settings = spec.artifact.settings_of(name, "matrix")
    # Runs from before the widths had to be equal go on at their own.
    return quantiser(settings, spec.training.qat.bits if settings is spec.artifact.matrix else settings.bits)


def quantised_matrices(spec: Spec) -> dict[str, int]:
    """Names of the matrices quantised in training, each with its own number below 2^32; none where it is off.

    Plain Python that torch.compile can follow: no cache, no hash of the name.
    """
    if spec.training.qat.form == "off":
        return {}
    return {
        parameter.name: index * SALT_STEP % 2**32
        for index, parameter in enumerate(parameter_manifest(spec))
        if parameter.quantisation == "matrix" and len(parameter.shape) >= 2
    }
