"""What two specs differ in, and what may differ for which purpose."""

from __future__ import annotations

import pytest

from shared.spec import load_spec
from shared.spec.difference import (
    FREE_IN_EXPERIMENT,
    FREE_IN_RECORD,
    FREE_ON_CURVE,
    HANDLING,
    WATCHING,
    Difference,
    fields,
    first_difference,
    free_in_run,
)

TINY = load_spec("tiny")
CHANGES = {
    "name": "other",
    "model.decoder.dim": 32,
    "optimizer.matrix_lr": 0.5,
    "schedule.warmdown_frac": 0.5,
    "data.train": "other",
    "training.seed": 7,
    "training.steps": 7,
    "training.compile": False,
    "training.keep_checkpoints": 7,
    "training.qat.bits": 8,
    "artifact.matrix.bits": 8,
    "artifact.brotli_quality": 1,
    "evaluation.stride_symbols": 7,
    "budget.total_bytes": 7,
}


@pytest.mark.parametrize(
    "free", [WATCHING | HANDLING, FREE_IN_RECORD, FREE_IN_EXPERIMENT, FREE_ON_CURVE, free_in_run(TINY)], ids=len
)
def test_what_is_free_exists(free: frozenset[str]) -> None:
    assert all(any(f"{key}.".startswith(f"{name}.") for key in fields(TINY)) for name in free)
    assert fields(TINY, free).keys() < fields(TINY).keys()


@pytest.mark.parametrize(("key", "value"), CHANGES.items())
def test_a_change_is_the_difference_unless_it_is_free(key: str, value: object) -> None:
    changed = load_spec("tiny", [f"{key}={str(value).lower()}"])
    before = fields(TINY)[key]
    assert first_difference(TINY, TINY) is None
    # The width of QAT follows that of the artifact.
    if key == "artifact.matrix.bits":
        changed = load_spec("tiny", ["artifact.matrix.bits=8", "training.qat.bits=6"])
    assert first_difference(TINY, changed) == Difference(key, before, value)
    assert first_difference(changed, TINY) == Difference(key, value, before)
    assert first_difference(TINY, changed, {key}) is first_difference(TINY, changed, {key.split(".")[0]}) is None
    may_change_in_run = {"name", "training.compile", "training.keep_checkpoints", "training.qat.bits"}
    is_free = key in may_change_in_run or key.split(".")[0] in ("artifact", "evaluation", "budget")
    assert (first_difference(TINY, changed, free_in_run(TINY)) is None) == is_free


def test_codes_that_a_loss_is_of_may_not_change_in_a_run() -> None:
    entropy = load_spec("tiny", ["training.loss.code_entropy.weight=0.1"])
    rounded = load_spec("tiny", ["training.qat.form=straight_through"])
    assert free_in_run(TINY) - free_in_run(entropy) == {"artifact.matrix", "artifact.tensors"}
    assert free_in_run(TINY) - free_in_run(rounded) == {"artifact.matrix", "artifact.tensors", "training.qat.bits"}
