"""A whole spec: its sections together, and the rules that hold between them.

A spec says everything that determines an experiment; `shared.spec.load` composes it from a preset or file and
overrides. Both engines read the same resolved object, so there is no second place where a default could differ.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from shared.spec.artifact import ArtifactSpec, BudgetSpec, EvaluationSpec
from shared.spec.base import Section, require
from shared.spec.model import ModelSpec, VocabularySpec
from shared.spec.optimizer import OptimizerSpec, ScheduleSpec
from shared.spec.training import DataSpec, TrainingSpec


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
            require(value % seq_len == 0, field, value, f"a multiple of model.seq_len ({seq_len})")
        require(
            self.evaluation.stride_symbols <= seq_len,
            "evaluation.stride_symbols",
            self.evaluation.stride_symbols,
            f"at most model.seq_len ({seq_len}), so that every symbol is scored",
        )
        timed = self.schedule.driver == "time"
        require(
            timed == (self.training.time_limit_s > 0),
            "training.time_limit_s",
            self.training.time_limit_s,
            "above 0 with schedule.driver 'time' and 0 with 'steps'",
        )
        return self
