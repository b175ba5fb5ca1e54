"""Compares specs, and lists the fields that may differ in a resumed run and in runs of one record or comparison.

Fields and sections are named as `section.key`; a section stands for all fields in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shared.spec.artifact import ArtifactSpec
from shared.spec.spec import Spec

SEED_KEY = "training.seed"
# The name of the training text. What counts is the text itself, because another one may get this name later.
TRAIN_KEY = "data.train"
# The codes of matrices, which an artifact stores and a loss may be of.
CODES_KEYS = ("artifact.matrix", "artifact.tensors")

# How a run is watched and stored.
WATCHING = frozenset(
    {
        "name",
        "training.log_every_steps",
        "training.val_every_steps",
        "training.checkpoint_every_steps",
        "training.keep_checkpoints",
    }
)
# How its weights are packed and scored, and how a batch is cut to fit a machine: nothing that changes what is learned.
HANDLING = frozenset(
    {
        *(f"artifact.{name}" for name in ArtifactSpec.model_fields),
        "evaluation",
        "budget",
        "training.micro_batch_symbols",
        "training.memory_limit_bytes",
        "training.compile",
    }
)
# Runs of one record, of one experiment in a comparison, and of one scaling curve.
FREE_IN_RECORD = frozenset({SEED_KEY, TRAIN_KEY})
FREE_IN_EXPERIMENT = WATCHING | FREE_IN_RECORD
FREE_ON_CURVE = FREE_IN_EXPERIMENT | {
    "training.steps",
    "training.time_limit_s",
    "training.reserve_s",
    "schedule.driver",
    "schedule.warmdown_frac",
}


@dataclass(frozen=True)
class Difference:
    """A field as `section.key`, and its values in the first and second spec."""

    key: str
    first: Any
    second: Any


def free_in_run(spec: Spec) -> frozenset[str]:
    """The fields that may change when a run of this spec is resumed."""
    free = set(WATCHING | HANDLING)
    loss, qat = spec.training.loss, spec.training.qat
    if loss.code_entropy.weight or qat.form == "straight_through":
        free.difference_update(CODES_KEYS)  # the codes of the artifact are those of the loss
    if qat.form == "off":
        free.add("training.qat.bits")
    return frozenset(free)


def fields(spec: Spec, free: Collection[str] = ()) -> dict[str, Any]:
    """The values of a spec by `section.key`, without the fields and sections in `free`."""
    return {key: value for key, value in _flat(spec.model_dump(mode="json"), "") if not _is_in(key, free)}


def first_difference(first: Spec, second: Spec, free: Collection[str] = ()) -> Difference | None:
    """The first field outside `free` that differs, in the order of the schema; None if there is none."""
    ours, theirs = fields(first, free), fields(second, free)
    for key in {**ours, **theirs}:
        # A section that is off is not written.
        if ours.get(key) != theirs.get(key):
            return Difference(key, ours.get(key), theirs.get(key))
    return None


def _is_in(key: str, free: Collection[str]) -> bool:
    """Whether a field, or a section around it, is listed."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in free for length in range(1, len(parts) + 1))


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
