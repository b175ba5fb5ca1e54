"""A whole spec: its sections together, and the rules that hold between them.

A spec says everything that determines an experiment; `shared.spec.load` composes it from a preset or file and
overrides. Both engines read the same resolved object, so there is no second place where a default could differ.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from shared.spec.artifact import ArtifactSpec
from shared.spec.auxiliary import check_auxiliary, check_code_entropy
from shared.spec.base import Section, require
from shared.spec.budget import BudgetSpec
from shared.spec.data import DataSpec
from shared.spec.depth import check_loop_schedule
from shared.spec.evaluation import EvaluationSpec
from shared.spec.loss import check_loss
from shared.spec.model import ModelSpec
from shared.spec.optimizer import OptimizerSpec
from shared.spec.qat import check_qat
from shared.spec.schedule import ScheduleSpec
from shared.spec.training import TrainingSpec, check_snapshots
from shared.spec.vocabulary import VocabularySpec


class Spec(Section):
    """A whole experiment. Construct it with `shared.spec.load_spec` or `spec_from_dict`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="letters, digits, '.', '_' and '-', a letter or digit first; default the name of the file. Runs "
        "are called NAME-ENGINE-N"
    )
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
        values = {**values, "evaluation": {**derived, **evaluation}}
        qat = training.get("qat", {})
        if "training" in values and isinstance(qat, dict):
            bits = ArtifactSpec.matrix_bits_of(values.get("artifact"))
            values["training"] = {**training, "qat": {"bits": bits, **qat}}
        return values

    @model_validator(mode="after")
    def _check_across_sections(self) -> Spec:
        seq_len = self.model.seq_len
        for field, value in (
            ("training.batch_symbols", self.training.batch_symbols),
            ("training.micro_batch_symbols", self.training.micro_batch_symbols),
            ("evaluation.batch_symbols", self.evaluation.batch_symbols),
        ):
            require(value % seq_len == 0, field, value, f"a multiple of model.seq_len ({seq_len})")
        stride = self.evaluation.stride_symbols
        allowed = f"at most model.seq_len ({seq_len}), so that every symbol is scored"
        require(stride <= seq_len, "evaluation.stride_symbols", stride, allowed)
        check_loop_schedule(self.model.loop, self.schedule.loop, self.training.steps, self.schedule.driver)
        marked = self.vocabulary.document_start is not None
        has_start_row = self.model.patch_size == 1 and marked
        allowed = "'learned', unless patch_size is 1 and the vocabulary has a document start"
        require(self.model.start == "learned" or has_start_row, "model.start", self.model.start, allowed)
        allowed = f"false, as vocabulary.kind {self.vocabulary.kind!r} does not mark where documents start"
        masked = self.model.attention.document_mask
        require(not masked or marked, "model.attention.document_mask", masked, allowed)
        check_snapshots(self.training, self.schedule.driver)
        frozen, loss, model = self.training.freeze, self.training.loss, self.model
        allowed = "'none' where model.lora.rank is 0"
        require(frozen == "none" or model.lora.rank > 0, "training.freeze", frozen, allowed)
        check_loss(loss, self.vocabulary)
        check_auxiliary(
            loss.multi_symbol, loss.embed_prediction, loss.chunk_prediction, model.patch_size, model.num_patches
        )
        check_code_entropy(loss.code_entropy, self.training.steps, self.schedule.driver)
        check_qat(self.training.qat, self.training.steps, self.schedule.driver)
        timed = self.schedule.driver == "time"
        limit_s, reserve_s = self.training.time_limit_s, self.training.reserve_s
        allowed = "above 0 with schedule.driver 'time' and 0 with 'steps'"
        require(timed == (limit_s > 0), "training.time_limit_s", limit_s, allowed)
        allowed = f"below training.time_limit_s ({limit_s})" if timed else "0 without a time limit"
        require(reserve_s == 0 or self.training.steps_limit_s > 0, "training.reserve_s", reserve_s, allowed)
        return self
