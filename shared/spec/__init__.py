"""The spec: the schema, presets, overrides, identity."""

from shared.spec.load import (
    json_schema,
    load_spec,
    preset_names,
    spec_from_dict,
    spec_id,
    spec_to_dict,
    spec_to_toml,
    with_overrides,
)
from shared.spec.sections import (
    ArtifactSpec,
    DecoderSpec,
    ModelSpec,
    OptimizerSpec,
    ScheduleSpec,
    Spec,
    TrainingSpec,
    VocabularySpec,
)

__all__ = [
    "ArtifactSpec",
    "DecoderSpec",
    "ModelSpec",
    "OptimizerSpec",
    "ScheduleSpec",
    "Spec",
    "TrainingSpec",
    "VocabularySpec",
    "json_schema",
    "load_spec",
    "preset_names",
    "spec_from_dict",
    "spec_id",
    "spec_to_dict",
    "spec_to_toml",
    "with_overrides",
]
