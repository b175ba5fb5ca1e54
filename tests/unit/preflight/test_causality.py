"""The row on causality: which function it checks, and on what text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from shared.engine.package import create_engine
from shared.model import forward
from shared.ops import Array, Ops
from shared.preflight import function_rows as functions
from shared.spec import Spec, load_spec
from tests.fake_training import tiny_spec
from tests.museum.attention_leaks import smear_across_documents

pytestmark = pytest.mark.slow


def causality_context(spec: Spec, kind: str = "cpu", as_trained: bool = False) -> Any:
    """What the row looks at, on torch; a `kind` of gpu is this CPU under that name."""
    question = SimpleNamespace(engine="torch", as_trained=as_trained)
    return SimpleNamespace(spec=spec, facts=SimpleNamespace(kind=kind), question=question, host_free_bytes=2**40)


def leaky_where_it_is_paid_for(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """An honest function, but for the compiled one in bfloat16: a kernel that was tested in float32 alone."""
    import torch

    logits = forward(ops, spec, params, x)
    if spec.training.dtype == "float32" or not torch.compiler.is_compiling():
        return logits
    return logits + torch.nn.functional.one_hot(x.long(), spec.vocabulary.size)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_function_that_is_paid_for_is_the_one_that_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU in the spec's dtype and compiled, on a CPU in float32, unless it is asked for."""
    import torch

    # Traced as for a GPU, and run as it stands: the kernels of a CPU take a minute to make.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    spec = load_spec("tiny", ["training.dtype=bfloat16", "model.num_layers=1", "model.decoder.kind=linear"])
    honest = functions.causality_row(causality_context(spec, "gpu"))
    assert honest.verdict == "go" and honest.values["future"] == honest.values["target"] == 0.0
    assert honest.how.endswith("windows of 64 symbols, bfloat16, compiled")
    monkeypatch.setattr(functions, "create_engine", functools.partial(create_engine, model=leaky_where_it_is_paid_for))
    on_cpu = functions.causality_row(causality_context(spec))
    assert on_cpu.verdict == "go" and "float32, uncompiled; on a GPU, or with --as-trained, bfloat16" in on_cpu.how
    row = functions.causality_row(causality_context(spec, as_trained=True))
    assert row.verdict == "no-go" and "target" in row.values["failed"]


@pytest.mark.parametrize("masked", [False, True])
def test_causality_of_tokens(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text needs no tokenizer; isolation is asked of a model that claims it."""
    words = ["vocabulary.kind=tokens", "vocabulary.vocab_size=300", "model.patch_size=1", "model.decoder.kind=linear"]
    spec = tiny_spec(*words, "model.smear_gate=v1", f"model.attention.document_mask={str(masked).lower()}")
    context = causality_context(spec)
    assert functions.causality_row(context).verdict == "go"
    monkeypatch.setattr(functions, "create_engine", functools.partial(create_engine, model=smear_across_documents))
    assert functions.causality_row(context).values["failed"] == (["isolation"] if masked else [])
