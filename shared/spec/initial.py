"""The model section's fields about its table of symbols and its initial weights (docs/techniques.md 3.6, 3.7)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.spec.base import MAX_SIZE, require

MatrixInit = Annotated[
    Literal["uniform", "orthogonal"],
    Field(
        description="uniform: in +-1/sqrt(fan-in). orthogonal: matrices of Muon with both sides 64 or more start with "
        "orthonormal rows or columns (gain 1), narrower ones as with uniform. Zero output projections stay zero in both"
    ),
]
EmbedInit = Annotated[
    Literal["normal", "overtone", "bigram_svd"],
    Field(
        description="tables of symbols. normal: of standard deviation embed_init_std. overtone: E = U S V' of that "
        "draw with S[k] = S[1] / sqrt(k), k from 1. bigram_svd: U sqrt(S) of the positive pointwise mutual information "
        "max(0, ln(n c[a, b] / (c[a] c[b]))) of neighbours in the first 2^22 symbols of the training text, scaled to a "
        "root mean square of embed_init_std; symbols that this text does not have keep the normal draw"
    ),
]
ResidMixInit = Annotated[
    Literal["first", "phase"],
    Field(
        description="first: a block reads its input alone, m = (1, 0). phase: layer l of N, counted from 0, reads "
        "m0 = sigmoid(3 (l / (N - 1) - 1/2)) of it and m1 = 1 - m0 of x0"
    ),
]


EmbedRank = Annotated[
    int,
    Field(
        ge=0,
        le=MAX_SIZE,
        description="rank r of the trunk's table of symbols, E = A B' with A [V, r] and B [D, r], also where it is the "
        "tied head; embed_init is about A, and B starts like a matrix. 0: E is a table of its own",
    ),
]


def check_initial(resid_mix: bool, resid_mix_init: str, embed_rank: int, model_dim: int) -> None:
    """Raise ValueError for an initial value of weights that the model does not have, or factors that save nothing."""
    allowed = f"0 or below model.model_dim ({model_dim})"
    require(embed_rank < model_dim, "model.embed_rank", embed_rank, allowed)
    allowed = "'first' where model.resid_mix is false"
    require(resid_mix or resid_mix_init == "first", "model.resid_mix_init", resid_mix_init, allowed)
