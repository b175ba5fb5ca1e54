"""Rounding with feedback along rows and along columns, and the steps that go with it (docs/techniques.md 11.10).

The loss of an error E of a matrix is close to tr(G E H E') / (2 tr G), with H [C, C] and G [R, R] the mean products of
the loss's gradient with itself over inputs and over outputs (Curvature). GPTQ knows H only and treats all outputs
alike. Here both are factored, H = M D M' and G = N K N' with upper triangles and ones on the diagonal, and the loss is
the sum over weights of D_c K_r (N' E M)_rc^2. A weight can choose its own E_rc after those before it in its row and in
its column, so it rounds w_rc less what they add to (N' E M)_rc.

What is left of the loss is the sum of D_c K_r step_rc^2 / 12. At a given sum of code lengths it is least where all
terms are equal: the step of a weight is proportional to 1 / sqrt(D_c K_r), and over tensors to sqrt(tr G) as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.quantisers.gptq import feedback_factor
from shared.quantisers.protocol import Curvature

DAMP_FRAC = 0.1
"""Added to both diagonals, as a share of their mean. The factors come from a few dozen windows, and what they call
insensitive may not be: 0.03 saves some tenths of a bit and 0.01 ruined models at coarse steps."""

BLOCK = 32
"""Rows and columns of a block. It changes the speed and, but for rounding of float64, no code."""

STEPS_PER_OCTAVE = 8
MAX_EXPONENT = 127


@dataclass(frozen=True)
class Factors:
    """One side of the loss: `triangle` upper with ones on its diagonal, `weights` the diagonal matrix, both in the
    order of the visits, which lists row or column indices."""

    triangle: NDArray[np.float64]
    weights: NDArray[np.float64]
    order: NDArray[np.int64]

    @property
    def log2_step(self) -> NDArray[np.float64]:
        """log2 of 1 / sqrt(weight), in the order of the matrix."""
        found = np.empty(len(self.order))
        found[self.order] = -0.5 * np.log2(self.weights)
        return found


def factors_of(side: NDArray[np.float64], damp_frac: float = DAMP_FRAC) -> Factors:
    """The factors of one side of a Curvature. Raises ArtifactError for a matrix that no gradients have."""
    return Factors(*feedback_factor(side, damp_frac=damp_frac))


def no_feedback(count: int) -> Factors:
    """The side on which nothing is known: all alike, and none feeds another."""
    return Factors(np.eye(count), np.ones(count), np.arange(count))


def exponents(log2_steps: NDArray[np.float64]) -> NDArray[np.int8]:
    """Eighths of an octave about the mean."""
    eighths = np.rint(STEPS_PER_OCTAVE * (log2_steps - log2_steps.mean()))
    return np.clip(eighths, -MAX_EXPONENT, MAX_EXPONENT).astype(np.int8)


def loss_scale(curvature: Curvature, columns: Factors, rows: Factors) -> float:
    """The geometric mean over weights of the step whose rounding costs 1/24 nat per symbol and weight."""
    mean_log2 = float(columns.log2_step.mean() + rows.log2_step.mean())
    return float(np.sqrt(np.trace(curvature.outputs)) * 2.0**mean_log2)


def two_sided(
    weights_RC: NDArray[np.floating], steps_RC: NDArray[np.float64], columns: Factors, rows: Factors, limit: int
) -> NDArray[np.int8]:
    """Codes -limit to limit of a matrix, given the step of every weight."""
    ahead = np.ix_(rows.order, columns.order)
    values_RC, steps_RC = weights_RC[ahead].astype(np.float64), steps_RC[ahead]
    codes_RC, errors_RC = np.zeros(values_RC.shape, np.int8), np.zeros(values_RC.shape)
    height, width = values_RC.shape
    for left in range(0, width, BLOCK):
        across = slice(left, left + BLOCK)
        triangle_CC = columns.triangle[across, across]
        wanted_RC = values_RC[:, across] - rows.triangle.T @ (errors_RC[:, :left] @ columns.triangle[:left, across])
        passed_RC = np.zeros(wanted_RC.shape)
        for top in range(0, height, BLOCK):
            down = slice(top, top + BLOCK)
            wanted = wanted_RC[down] - rows.triangle[:top, down].T @ passed_RC[:top]
            block = (down, across)
            codes_RC[block], errors_RC[block] = _block(
                values_RC[block], wanted, steps_RC[block], rows.triangle[down, down], triangle_CC, limit
            )
            passed_RC[down] = errors_RC[block] @ triangle_CC
    back = np.empty_like(codes_RC)
    back[ahead] = codes_RC
    return back


def _block(
    weights: NDArray[np.float64],
    wanted: NDArray[np.float64],
    steps: NDArray[np.float64],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    limit: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Codes and errors of a block. The weights of an anti-diagonal do not feed each other, so they go together."""
    height, width = weights.shape
    codes, errors = np.zeros_like(weights), np.zeros_like(weights)
    for diagonal in range(height + width - 1):
        row = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        column = diagonal - row
        at = (row, column)
        codes[at] = np.clip(np.rint(wanted[at] / steps[at]), -limit, limit)
        errors[at] = codes[at] * steps[at] - weights[at]
        wanted = wanted - rows[row].T @ (errors[at][:, None] * columns[column])
    return codes, errors
