"""The optimizer section (docs/techniques.md 9)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.spec.base import AboveZero, BelowOne, Count, DType, Fraction, Rate, Section, require_all

NSCoefficients = Literal["quintic", "polar_express"]
OptimizerForm = Literal["muon", "adam", "sgd"]
# Whose weight decay each form reads.
DECAYS: dict[OptimizerForm, tuple[str, ...]] = {"muon": ("muon", "adam"), "adam": ("adam",), "sgd": ()}


class OptimizerSpec(Section):
    """Muon for matrices, Adam for everything else (docs/techniques.md 9); or one of Adam and SGD for everything, each
    group at its own rate. Learning rates are peak values."""

    form: OptimizerForm = Field(
        "muon",
        description="muon: Muon for matrices, Adam for the rest; adam: Adam for everything; sgd: gradient descent with "
        "the momentum of muon_momentum for everything, without decay",
    )
    matrix_lr: Rate = Field(0.02, description="peak rate of matrices; with Muon times max(1, sqrt(rows / columns))")
    embed_lr: Rate = Field(0.03, description="peak rate of Adam for tables of symbols, tied heads included")
    head_lr: Rate = Field(0.008, description="peak rate of Adam for output matrices that are not tied to a table")
    scalar_lr: Rate = Field(0.02, description="peak rate of Adam for gains, scales, gates and other small parameters")
    adapter_lr: Rate = Field(0.01, description="peak rate of Adam for the factors of model.lora")
    muon_momentum: Fraction = Field(0.95, description="momentum of Muon after warm-up; higher averages over more steps")
    muon_momentum_start: Fraction = Field(0.85, description="momentum at first, rises linearly to muon_momentum")
    muon_momentum_warmup_steps: Count = Field(300, description="steps over which the momentum rises; 0 is none")
    muon_weight_decay: Rate = Field(
        0.0, description="decoupled decay of the matrices of Muon, p -= lr decay p; helps compression"
    )
    muon_cautious_decay: bool = Field(
        False, description="a weight decays only where its update has its sign, p -= 1[u p >= 0] lr decay p"
    )
    muon_row_normalise: bool = Field(
        False, description="MuonEq-R: rows of the update are divided by max(L2 norm, 1e-7) before Newton-Schulz"
    )
    normuon: bool = Field(
        False,
        description="NorMuon: the orthogonal update is divided by the root of a running mean square of each row "
        "(column, where those are more) and rescaled to its former Frobenius norm",
    )
    normuon_beta2: BelowOne = Field(0.9, description="decay of the running mean of NorMuon")
    ns_steps: Annotated[int, Field(ge=1, le=100)] = Field(
        5, description="Newton-Schulz iterations per update; fewer are faster, less orthogonal"
    )
    ns_coefficients: NSCoefficients = Field(
        "quintic",
        description="coefficients of the Newton-Schulz polynomial. quintic: the same three in every iteration; "
        "polar_express: three for each of five iterations, the last for all further ones",
    )
    ns_dtype: DType = Field(
        "float32",
        description="dtype of the Newton-Schulz products; bfloat16 is faster on a GPU, but an update is off by about "
        "4 %",
    )
    adam_beta1: Fraction = Field(0.9, description="decay of Adam's mean of gradients")
    adam_beta2: Fraction = Field(0.95, description="decay of Adam's mean of squared gradients; higher for noisy ones")
    adam_eps: AboveZero = Field(1e-8, description="added to the root of the mean square, outside it")
    adam_weight_decay: Rate = Field(0.0, description="decoupled decay of the parameters of Adam, p -= lr decay p")
    adam_cautious_decay: bool = Field(False, description="the same as muon_cautious_decay, for the parameters of Adam")
    grad_clip_norm: Rate = Field(0.0, description="limit on the norm of all gradients together; 0 is no limit")

    @model_validator(mode="after")
    def _check_decay(self) -> OptimizerSpec:
        for kind in ("muon", "adam"):
            cautious, decay = f"{kind}_cautious_decay", f"{kind}_weight_decay"
            used = not getattr(self, cautious) or getattr(self, decay) > 0
            no_decay = bool(DECAYS[self.form]) or getattr(self, decay) == 0
            require_all(
                self,
                "optimizer",
                (used, cautious, f"false where optimizer.{decay} is 0"),
                (no_decay, decay, f"0 with optimizer.form {self.form!r}, which has none"),
            )
        return self
