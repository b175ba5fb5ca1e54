"""Rounding with error feedback, GPTQ: each column makes up for the errors of those before it (docs/techniques.md 11.6).

The error of a matrix on its inputs is tr(E H E'), with E the decoded weights minus the weights and H = X'X / n of the
inputs. GPTQ rounds one column after the other and adds err U_j / U_jj to the columns that are left, U the upper
Cholesky factor of H^-1. Here H itself is factored, H = M D M' with M upper triangular and ones on its diagonal, which
gives the same columns without an inverse: tr(E H E') is the sum over columns k of D_k |(E M)_k|^2, and column k can
still choose E_k, so it rounds w_k - sum of E_j M_jk over the earlier j. U_jj^2 is 1 / D_j.

The pass knows nothing of grids: it asks for one column at a time. It runs in float64, so that equal statistics give
equal codes except where a value is within rounding of the border of two codes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shared.errors import ArtifactError
from shared.quantisers.protocol import InputStatistics

QuantiseColumn = Callable[[NDArray[np.float64], int, float], tuple[NDArray[np.integer], NDArray[np.float64]]]
"""`(values_R, column, weight) -> (codes_R, decoded_R)`: the codes of one column of a matrix and what they stand for.

`values_R` are the weights with the feedback of earlier columns, `column` is the index within the matrix, and
`weight` is D of the module text: a difference of decoded and values costs its square times this."""

DAMP_FRAC = 0.01
"""What is added to the diagonal of H, as a share of its mean."""

BLOCK_COLUMNS = 128
"""Columns whose feedback to all later ones is added in one product. It changes the speed and no code."""


def gptq(
    weights_RC: NDArray[np.floating],
    gram_CC: NDArray[np.float64],
    quantise_column: QuantiseColumn,
    *,
    act_order: bool = True,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Codes int32 [R, C] and decoded weights float64 [R, C] of a matrix whose inputs have X'X / n = gram_CC.

    Inputs that are always 0 have their weights rounded as 0. Columns are visited by falling diagonal of the Gram
    matrix, ties in their own order; with `act_order` false from the first to the last. Raises ArtifactError for a Gram
    matrix of another size, or one that no inputs have.
    """
    factor_CC, importance_C, order_C = feedback_factor(gram_CC, act_order=act_order)
    rows, columns = weights_RC.shape
    if len(order_C) != columns:
        raise ArtifactError(f"statistics of {len(order_C)} inputs for a matrix with {columns}")
    # One line of memory for each column, in the order of the visits.
    values_CR = np.ascontiguousarray(weights_RC.T[order_C], np.float64)
    values_CR[np.diag(gram_CC)[order_C] == 0] = 0.0
    errors_CR, decoded_CR = np.empty_like(values_CR), np.empty_like(values_CR)
    codes_CR = np.empty((columns, rows), np.int32)
    for start in range(0, columns, BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, columns)
        wanted_CR = values_CR[start:stop] - factor_CC[:start, start:stop].T @ errors_CR[:start]
        for index in range(start, stop):
            wanted_R = wanted_CR[index - start] - factor_CC[start:index, index] @ errors_CR[start:index]
            codes_R, decoded_R = quantise_column(wanted_R, int(order_C[index]), float(importance_C[index]))
            codes_CR[index], decoded_CR[index] = codes_R, decoded_R
            errors_CR[index] = decoded_CR[index] - values_CR[index]
    visited_at = np.argsort(order_C)
    return np.ascontiguousarray(codes_CR[visited_at].T), np.ascontiguousarray(decoded_CR[visited_at].T)


def feedback_factor(
    gram_CC: NDArray[np.float64], *, act_order: bool = True, damp_frac: float = DAMP_FRAC
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """M [C, C] and D [C] of the damped H = M D M' in the order of the visits, and that order: column indices [C].

    Inputs that are always 0 count as 1 on the diagonal. Raises ArtifactError for a matrix that is not finite, or not
    positive definite after damping.
    """
    damped_CC = np.array(gram_CC, np.float64)
    diagonal_C = damped_CC.diagonal().copy()
    diagonal_C[diagonal_C == 0] = 1.0
    order_C = np.argsort(-diagonal_C, kind="stable") if act_order else np.arange(len(diagonal_C))
    np.fill_diagonal(damped_CC, diagonal_C + damp_frac * diagonal_C.mean())
    backward_C = order_C[::-1]
    try:
        # Lower triangular in reversed order is upper triangular in this one.
        upper_CC = np.linalg.cholesky(damped_CC[np.ix_(backward_C, backward_C)])[::-1, ::-1]
    except np.linalg.LinAlgError:
        upper_CC = np.full((1, 1), np.nan)
    if not np.isfinite(upper_CC).all():
        raise ArtifactError("the Gram matrix of its inputs is not positive definite and finite")
    roots_C = np.asarray(upper_CC.diagonal(), np.float64)
    return np.ascontiguousarray(upper_CC / roots_C), roots_C * roots_C, order_C.astype(np.int64)


def mean_gram(statistics: InputStatistics | None, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """H = X'X / n of the inputs of a tensor of this shape; None where they have none.

    None have tables that are only looked up, experts, and stacks of more than one matrix. Such tensors are rounded to
    the nearest code.
    """
    if statistics is None or statistics.gram is None or len(shape) != 2 or statistics.rows == 0:
        return None
    return statistics.gram / statistics.rows


def error_on_inputs(errors_RC: NDArray[np.floating], gram_CC: NDArray[np.float64]) -> float:
    """tr(E H E'): the mean over inputs of the squared error of a matrix's outputs, added up over outputs."""
    return float(np.einsum("rc,rc->", errors_RC @ gram_CC, errors_RC, dtype=np.float64))
