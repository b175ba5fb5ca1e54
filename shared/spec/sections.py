"""The sections of a spec: one frozen, strict pydantic model each.

A spec says everything that determines an experiment. Each section sits here with the meaning, unit
and allowed range of its fields; `shared.spec.load` composes them from a preset or file and overrides.
Both engines read the same resolved object, so there is no second place where a default could differ.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]

DType = Literal["float32", "bfloat16"]
DecoderKind = Literal["autoregressive", "mlp", "linear"]


class Section(BaseModel):
    """Base of every section: immutable, strict about types, refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class VocabularySpec(Section):
    """The alphabet of the model. `byte256`: the raw bytes. `byte260` (FEATURES 3.14): four special
    symbols, then the bytes at offset 4; symbol 1 stands before every document."""

    kind: Literal["byte256", "byte260"] = "byte256"

    @property
    def size(self) -> int:
        """Number of symbols V."""
        return 256 + self.byte_offset

    @property
    def byte_offset(self) -> int:
        """Symbol of byte 0."""
        return 4 if self.kind == "byte260" else 0

    @property
    def document_start(self) -> int | None:
        """Symbol that stands before every document, None where documents simply follow each other."""
        return 1 if self.kind == "byte260" else None


class DecoderSpec(Section):
    """How a trunk output becomes the distributions of the P symbols of one patch (FEATURES 2.1).

    `autoregressive`: a local causal transformer over the patch, MegaByte form; with `context` above 1 its
    input is a projection of the last symbols instead of the last one alone, also across patches. `mlp`: one
    two-layer head per position, no context inside the patch. `linear`: one linear map to P * V logits;
    with patch_size 1 it is the ordinary language-model head.
    """

    kind: DecoderKind
    dim: Positive = Field(128, description="width of the local transformer, or hidden units of a head")
    num_layers: Positive = Field(1, description="layers of the local transformer")
    num_heads: Positive = Field(4, description="attention heads of the local transformer")
    mlp_dim: Positive = Field(256, description="MLP width of the local transformer")
    context: Positive = Field(1, description="earlier symbols that each local position reads directly")


class ModelSpec(Section):
    """Architecture: patch embedding, trunk, decoder (FEATURES 2.1 and 3.1)."""

    num_layers: Positive
    model_dim: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive = Field(description="default model_dim / num_heads")
    mlp_dim: Positive = Field(description="default 3 * model_dim")
    seq_len: Positive = Field(description="symbols in one training or scoring window")
    patch_size: Annotated[int, Field(ge=1, le=16)] = 1
    norm_eps: Annotated[float, Field(gt=0.0)] = 1e-6
    rope_base: Annotated[float, Field(gt=1.0)] = 1e4
    q_gain_init: float = Field(1.5, description="initial gain of the normalised queries, per head")
    mlp_negative_slope: Fraction = Field(0.5, description="slope below zero before squaring; 0 is relu squared")
    logit_softcap: Annotated[float, Field(gt=0.0)] = 30.0
    resid_mix: bool = Field(True, description="each block reads a learned mix of its input and x0")
    unet_skips: bool = Field(True, description="first-half outputs are added to second-half inputs")
    tie_embeddings: bool = Field(description="default true with patch_size 1 or an autoregressive decoder")
    embed_init_std: Annotated[float, Field(gt=0.0)] = 0.005
    decoder: DecoderSpec

    @property
    def num_patches(self) -> int:
        """Trunk positions N in one window."""
        return self.seq_len // self.patch_size

    @model_validator(mode="before")
    @classmethod
    def _derive_defaults(cls, values: Any) -> Any:
        """Fill the fields whose default depends on others, so that a resolved spec is explicit."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        dim, heads = values.get("model_dim"), values.get("num_heads")
        if isinstance(dim, int) and isinstance(heads, int) and heads > 0:
            values.setdefault("head_dim", dim // heads)
        if isinstance(dim, int):
            values.setdefault("mlp_dim", 3 * dim)
        patch_size = values.get("patch_size", 1)
        decoder = values.get("decoder", {})
        if isinstance(decoder, dict):
            values["decoder"] = decoder = {"kind": "linear" if patch_size == 1 else "autoregressive", **decoder}
            values.setdefault("tie_embeddings", _can_tie(patch_size, decoder["kind"]))
        return values

    @model_validator(mode="after")
    def _check_shapes(self) -> ModelSpec:
        _require(
            self.model_dim % self.num_heads == 0,
            "model.num_heads",
            self.num_heads,
            f"a divisor of model.model_dim ({self.model_dim})",
        )
        _require(self.head_dim % 2 == 0, "model.head_dim", self.head_dim, "an even number, as RoPE rotates pairs")
        _require(
            self.num_heads % self.num_kv_heads == 0,
            "model.num_kv_heads",
            self.num_kv_heads,
            f"a divisor of model.num_heads ({self.num_heads})",
        )
        _require(
            self.seq_len % self.patch_size == 0,
            "model.seq_len",
            self.seq_len,
            f"a multiple of model.patch_size ({self.patch_size})",
        )
        if self.decoder.kind == "autoregressive":
            _require(
                self.decoder.dim % (2 * self.decoder.num_heads) == 0,
                "model.decoder.dim",
                self.decoder.dim,
                f"a multiple of 2 * model.decoder.num_heads ({2 * self.decoder.num_heads})",
            )
        _require(
            not self.tie_embeddings or _can_tie(self.patch_size, self.decoder.kind),
            "model.tie_embeddings",
            self.tie_embeddings,
            "false, unless patch_size is 1 with a linear decoder or the decoder is autoregressive",
        )
        return self


class OptimizerSpec(Section):
    """Muon for matrices, Adam for everything else (FEATURES 3.5). Learning rates are peak values."""

    matrix_lr: Rate = 0.02
    embed_lr: Rate = 0.03
    head_lr: Rate = 0.008
    scalar_lr: Rate = 0.02
    muon_momentum: Fraction = 0.95
    muon_momentum_start: Fraction = 0.85
    muon_momentum_warmup_steps: Count = 300
    muon_weight_decay: Rate = 0.0
    ns_steps: Positive = Field(5, description="Newton-Schulz iterations")
    ns_dtype: DType = "float32"
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    adam_eps: Annotated[float, Field(gt=0.0)] = 1e-8
    adam_weight_decay: Rate = 0.0
    grad_clip_norm: Rate = Field(0.0, description="global gradient norm is clipped to this; 0 turns it off")


class ScheduleSpec(Section):
    """The learning-rate factor as a function of the progress fraction in [0, 1] (FEATURES 3.6).

    `steps`: progress is step / training.steps, reproducible. `time`: the larger of that and
    elapsed training time / training.time_limit_s, for a competition against the clock.
    """

    driver: Literal["steps", "time"] = "steps"
    warmup_frac: Fraction = 0.0
    warmdown_frac: Fraction = 0.4
    warmdown_shape: Literal["linear", "cosine"] = "linear"
    min_lr_frac: Fraction = Field(0.0, description="the factor at the end of the warm-down")


class DataSpec(Section):
    """Datasets by name (`bytetwin data list`). `builtin` needs no network: text of the Python library."""

    train: str = Field("builtin", min_length=1, description="its `train` split is trained on")
    heldout: str = Field("builtin", min_length=1, description="its `heldout` split is scored, never trained on")


class TrainingSpec(Section):
    """Length, batch, precision and cadence of a run."""

    seed: Count = 1337
    steps: Positive
    time_limit_s: Rate = Field(0.0, description="training time after which a `time` schedule ends; 0 is none")
    batch_symbols: Positive = Field(description="symbols in one global batch; a multiple of model.seq_len")
    micro_batch_symbols: Positive = Field(description="most symbols in one forward pass; default batch_symbols")
    memory_limit_bytes: Count = Field(
        0, description="micro-batches shrink until their activations fit, by estimate; 0 is no limit"
    )
    dtype: DType = "float32"
    compile: bool = True
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="decay of the weight average that is scored and packed; 0 turns it off"
    )
    log_every_steps: Positive = 10
    val_every_steps: Count = Field(0, description="validation on the subset; 0 is only at the end")
    checkpoint_every_steps: Count = Field(0, description="0 is only at the end and on interruption")
    keep_checkpoints: Positive = 2

    @model_validator(mode="before")
    @classmethod
    def _derive_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and "batch_symbols" in values:
            return {"micro_batch_symbols": values["batch_symbols"], **values}
        return values


class ArtifactSpec(Section):
    """Quantisation and compression of the packed model (FEATURES 3.10, 3.11)."""

    matrix_bits: Literal[6, 8] = 6
    embed_bits: Literal[6, 8] = 8
    head_bits: Literal[6, 8] = 8
    brotli_quality: Annotated[int, Field(ge=0, le=11)] = 11
    brotli_window: Annotated[int, Field(ge=10, le=24)] = 24


class EvaluationSpec(Section):
    """How text is scored: windows of model.seq_len that advance by stride_symbols (FEATURES 3.12)."""

    stride_symbols: Positive = Field(description="default model.seq_len: windows do not overlap")
    val_symbols: Positive = Field(131_072, description="size of the deterministic validation subset")
    batch_symbols: Positive = Field(description="most symbols in one scoring pass; default training.batch_symbols")
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95


class BudgetSpec(Section):
    """The limit on code plus artifact, decimal bytes (FEATURES 1.1)."""

    total_bytes: Positive = 16_000_000


class Spec(Section):
    """A whole experiment. Construct it with `shared.spec.load_spec` or `spec_from_dict`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    vocabulary: VocabularySpec = VocabularySpec()
    model: ModelSpec
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    data: DataSpec = DataSpec()
    training: TrainingSpec
    artifact: ArtifactSpec = ArtifactSpec()
    evaluation: EvaluationSpec
    budget: BudgetSpec = BudgetSpec()

    @model_validator(mode="before")
    @classmethod
    def _derive_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        model, training = values.get("model", {}), values.get("training", {})
        evaluation = values.get("evaluation", {})
        if not (isinstance(model, dict) and isinstance(training, dict) and isinstance(evaluation, dict)):
            return values
        derived = {}
        if "seq_len" in model:
            derived["stride_symbols"] = model["seq_len"]
        if "batch_symbols" in training:
            derived["batch_symbols"] = training["batch_symbols"]
        return {**values, "evaluation": {**derived, **evaluation}}

    @model_validator(mode="after")
    def _check_across_sections(self) -> Spec:
        seq_len = self.model.seq_len
        for field, value in (
            ("training.batch_symbols", self.training.batch_symbols),
            ("training.micro_batch_symbols", self.training.micro_batch_symbols),
            ("evaluation.batch_symbols", self.evaluation.batch_symbols),
        ):
            _require(value % seq_len == 0, field, value, f"a multiple of model.seq_len ({seq_len})")
        _require(
            self.evaluation.stride_symbols <= seq_len,
            "evaluation.stride_symbols",
            self.evaluation.stride_symbols,
            f"at most model.seq_len ({seq_len}), so that every symbol is scored",
        )
        timed = self.schedule.driver == "time"
        _require(
            timed == (self.training.time_limit_s > 0),
            "training.time_limit_s",
            self.training.time_limit_s,
            "above 0 with schedule.driver 'time' and 0 with 'steps'",
        )
        return self


def _can_tie(patch_size: int, kind: DecoderKind) -> bool:
    """Whether the head has the shape of an embedding table that the model owns."""
    return kind == "autoregressive" or (patch_size == 1 and kind == "linear")


def _require(holds: bool, field: str, value: object, allowed: str) -> None:
    """Raise ValueError naming the field, its value and what is allowed."""
    if not holds:
        raise ValueError(f"{field} = {value!r}: must be {allowed}")
