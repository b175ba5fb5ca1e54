"""Each attention add-on that reads too much is caught by its check, and by no other; the honest ones pass."""

from __future__ import annotations

import numpy as np
import pytest

from shared.engine.oracle import Oracle
from shared.model import Forward, forward, random_weights
from shared.scoring.audit import AuditReport, audit_scorer
from shared.spec import Spec, load_spec
from tests.museum.attention_leaks import (
    documents_of_the_target,
    smear_across_documents,
    smear_gate_of_the_target,
    value_embeddings_of_the_target,
)
from tests.museum.fake_stream import FakeStream


def spec_of(*overrides: str) -> Spec:
    return load_spec(
        "tiny",
        [
            "vocabulary.kind=byte260",
            "model.patch_size=1",
            "model.decoder.kind=linear",
            "model.num_layers=2",
            "model.seq_len=48",
            "model.attention.document_mask=true",
            "training.batch_symbols=480",
            "evaluation.batch_symbols=480",
            *overrides,
        ],
    )


def audit(spec: Spec, model: Forward, seed: int = 0) -> AuditReport:
    rng = np.random.default_rng(seed)
    text = FakeStream([rng.integers(32, 127, 100).astype(np.uint8).tobytes() for _ in range(9)], spec.vocabulary)
    return audit_scorer(Oracle(spec, random_weights(spec, seed), model), text, seed=seed)


def failures(report: AuditReport) -> list[str]:
    return [check.name for check in report.failures]


@pytest.mark.parametrize("smear", ["v1", "v2"])
@pytest.mark.parametrize("patch", [["model.patch_size=1"], ["model.patch_size=4", "model.decoder.kind=mlp"]])
def test_smear_across_documents(smear: str, patch: list[str]):
    spec = spec_of(f"model.smear_gate={smear}", "model.tie_embeddings=false", *patch)
    honest = audit(spec, forward)
    assert [check.name for check in honest.checks] == ["future", "target", "normalisation", "isolation", "order"]
    assert honest.passed, honest.failures
    # Earlier text is no leak, so the checks of causality have nothing to say.
    assert failures(audit(spec, smear_across_documents)) == ["isolation"]


def test_no_isolation_is_asked_of_a_model_that_claims_none():
    spec = spec_of("model.smear_gate=v1", "model.attention.document_mask=false")
    names = [check.name for check in audit(spec, smear_across_documents).checks]
    assert names == ["future", "target", "normalisation", "order"]


def test_smear_gate_of_the_target():
    """`future` cannot see it: the only symbol read too early is the target itself."""
    spec = spec_of("model.smear_gate=v2", "model.attention.document_mask=false")
    assert audit(spec, forward).passed
    assert failures(audit(spec, smear_gate_of_the_target)) == ["target"]


@pytest.mark.parametrize("patch", [["model.patch_size=1"], ["model.patch_size=4", "model.decoder.kind=mlp"]])
def test_value_embeddings_of_the_target(patch: list[str]):
    spec = spec_of(
        "model.attention.value_embed_dim=8",
        "model.attention.value_embed_layers=1",
        "model.attention.document_mask=false",
        "model.tie_embeddings=false",
        *patch,
    )
    assert audit(spec, forward).passed
    caught = failures(audit(spec, value_embeddings_of_the_target))
    assert caught == (["target"] if spec.model.patch_size == 1 else ["future", "target"])


@pytest.mark.parametrize("seed", range(4))
def test_documents_of_the_target(seed: int):
    """Only where the target starts a document does it show, so the audit's probe disturbs with such symbols too."""
    spec = spec_of()
    assert audit(spec, forward, seed).passed
    assert failures(audit(spec, documents_of_the_target, seed)) == ["target", "isolation"]
