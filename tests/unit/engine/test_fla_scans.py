"""The scans of fla-core, with a stand-in that has its functions: used where they agree, refused where they do not."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import cuda_train.fla_scans as fla_scans
from cuda_train.choosing import problem_of
from cuda_train.fla_scans import FLA, OWN, SCANS
from cuda_train.plain_ops import TorchOps
from shared.engine.package import create_engine
from shared.model import initial_weights
from shared.model.gated_delta import delta_scan
from shared.model.mamba2 import selective_scan
from shared.spec import load_spec
from tests.techniques import symbols

OPS = TorchOps(torch.device("cpu"))
SPEC = (
    "training.compile=false",
    "training.dtype=bfloat16",
    "model.num_layers=2",
    'model.mixers=["mamba2","gated_delta"]',
)


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What `work` gives in a thread of its own, where no operator of ours has switched autograd off."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def standing_in(scan: Callable[..., torch.Tensor]) -> type[torch.autograd.Function]:
    """A function with a gradient of its own, as those of fla-core are."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, *inputs: torch.Tensor) -> torch.Tensor:
            assert inputs[0].dtype == inputs[1].dtype == inputs[2].dtype == torch.bfloat16
            context.save_for_backward(*inputs)
            return scan(*(x.float() for x in inputs)).to(inputs[2].dtype)

        @staticmethod
        def backward(context: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
            def gradients() -> Sequence[torch.Tensor]:
                leaves = [x.detach().float().requires_grad_() for x in context.saved_tensors]
                return torch.autograd.grad(scan(*leaves), leaves, grads[0].float())

            return tuple(g.to(x.dtype) for g, x in zip(in_a_thread(gradients), context.saved_tensors, strict=True))

    return Function


def simple_gla(q: Any, k: Any, v: Any, g: Any = None, g_gamma: Any = None, scale: Any = None) -> tuple[Any, None]:
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    return standing_in(lambda q, k, v, g: scale * selective_scan(OPS, v, g, k, q)).apply(q, k, v, g), None


def gated_delta_rule(q: Any, k: Any, v: Any, g: Any, beta: Any, scale: Any = None) -> tuple[Any, None]:
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    return standing_in(lambda *x: scale * delta_scan(OPS, *x)).apply(q, k, v, g, beta), None


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """fla-core, as far as it is called, on this device."""
    for name, function in (("simple_gla", simple_gla), ("gated_delta_rule", gated_delta_rule)):
        module = types.ModuleType(f"fla.ops.{name}")
        setattr(module, f"chunk_{name}", function)
        monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)
    monkeypatch.setattr(fla_scans, "is_there", lambda device: True)


@pytest.mark.parametrize("name", list(SCANS))
def test_each_scan_is_that_of_the_model(name: str, installed: None):
    spec, (own, other) = load_spec("tiny", SPEC), SCANS[name]
    inputs = fla_scans.scan_inputs(spec, name, torch.device("cpu"))
    assert problem_of(lambda *x: other(OPS, *x), inputs, lambda *x: own(OPS, *x)) == ""
    # In float32 it would be exact: what is left is the rounding to bfloat16.
    assert not torch.equal(other(OPS, *inputs), own(OPS, *inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCANS))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiler_keeps_it_in_one_graph(name: str, installed: None):
    torch._dynamo.reset()
    inputs = fla_scans.scan_inputs(load_spec("tiny", SPEC), name, torch.device("cpu"))
    results = []
    for form in (SCANS[name][1], torch.compile(SCANS[name][1], fullgraph=True, backend="aot_eager")):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = form(OPS, *leaves)
        results.append([value, *torch.autograd.grad(value.square().sum(), leaves)])
    torch._dynamo.reset()
    assert all(map(torch.equal, *results))


def test_an_engine_uses_what_agrees_and_refuses_the_rest(installed: None, monkeypatch: pytest.MonkeyPatch):
    module = sys.modules["fla.ops.gated_delta_rule"]
    monkeypatch.setattr(module, "chunk_gated_delta_rule", lambda **named: gated_delta_rule(**{**named, "scale": 0.9}))
    engine: Any = create_engine("torch", load_spec("tiny", SPEC))
    engine.initialise(initial_weights(engine.spec))
    found = engine.warm_up(symbols(engine.spec))
    assert found["selective_scan"]["name"] == FLA and not found["selective_scan"]["refused"]
    assert found["delta_scan"]["name"] == OWN and found["delta_scan"]["refused"][FLA].startswith(
        "result off by 1.0e-01"
    )
    assert engine.ops.scans == {"selective_scan": SCANS["selective_scan"][1], "delta_scan": delta_scan}


def test_nothing_is_chosen_where_it_is_not_installed_or_for_float32(monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    assert not fla_scans.is_there(cpu) and not fla_scans.is_there(torch.device("cuda"))
    monkeypatch.setattr(fla_scans, "is_there", lambda device: True)
    assert fla_scans.chosen_scans(load_spec("tiny", [*SPEC, "training.dtype=float32"]), OPS, cpu) == {}
