"""The spec: the schema, presets, overrides, identity."""

from shared.spec.artifact import ArtifactSpec, QuantiserSpec
from shared.spec.load import (
    json_schema,
    load_spec,
    preset_names,
    read_stored_spec,
    spec_from_dict,
    spec_id,
    spec_to_dict,
    spec_to_short_toml,
    spec_to_toml,
    stored_spec,
    with_overrides,
)
from shared.spec.model import ModelSpec
from shared.spec.optimizer import OptimizerSpec
from shared.spec.schedule import ScheduleSpec
from shared.spec.spec import Spec
from shared.spec.training import TrainingSpec
from shared.spec.vocabulary import VocabularySpec

__all__ = [
    "ArtifactSpec",
    "ModelSpec",
    "OptimizerSpec",
    "QuantiserSpec",
    "ScheduleSpec",
    "Spec",
    "TrainingSpec",
    "VocabularySpec",
    "json_schema",
    "load_spec",
    "preset_names",
    "read_stored_spec",
    "spec_from_dict",
    "spec_id",
    "spec_to_dict",
    "spec_to_short_toml",
    "spec_to_toml",
    "stored_spec",
    "with_overrides",
]
