"""The choice among implementations of an operation: by parity, then by time; what is recorded of it."""

from __future__ import annotations

import functools
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import cuda_train.attention_forms as forms_module
from cuda_train.attention_forms import TORCHS_OWN, Attention, activate, attention_forms, grouped_attention
from cuda_train.choosing import BUDGET_S, choose
from cuda_train.flash_attention_4 import MODULE, flash_attention_4
from cuda_train.plain_ops import masked_attention
from shared.cli.main import main
from shared.engine.package import create_engine
from shared.model import initial_weights
from shared.runs.metrics import chosen_names
from shared.spec import load_spec
from shared.training.loop import TrainingLoop
from tests.techniques import symbols

SLOW_S = 0.02


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(3, 24, heads, 8) for heads in (4, 2, 2)]
    return [torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in shapes]


class Clock:
    """A clock on which only the slow form takes time, whatever else the machine does."""

    now_s = 0.0

    @classmethod
    def read(cls) -> float:
        return cls.now_s


def slow(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    Clock.now_s += SLOW_S
    return grouped_attention(q, k, v)


def other(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Right, and another implementation."""
    return masked_attention(q, k, v, q.shape[1], None)


def sees_the_future(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    k, v = (x.repeat_interleave(2, dim=2) for x in (k, v))
    y = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return y.transpose(1, 2)


def half_a_gradient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The right result; the gradient of v is half of what it is."""
    return grouped_attention(q, k, 0.5 * v + 0.5 * v.detach())


def broken(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel\nfor this device")


def not_a_number(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return grouped_attention(q, k, v) * float("nan")


def test_the_fastest_of_those_that_are_right():
    wrong: dict[str, Attention] = {
        "future": sees_the_future,
        "gradient": half_a_gradient,
        "broken": broken,
        "nan": not_a_number,
    }
    prepared: list[str] = []
    choice = choose({"slow": slow, **wrong, "other": other}, inputs(), grouped_attention, prepared.append, Clock.read)
    assert choice.name == "other" and prepared == ["slow", *wrong, "other"]
    assert set(choice.milliseconds) == {"slow", "other"} and choice.milliseconds["slow"] == 1e3 * SLOW_S
    assert choice.refused["future"].startswith("result off by ") and "at most 2e-02" in choice.refused["future"]
    assert choice.refused["gradient"].startswith("gradient 3 off by 5")
    assert choice.refused["broken"] == "RuntimeError: no kernel"
    assert choice.refused["nan"].startswith("result off by nan")


def test_the_first_stays_where_nothing_is_clearly_faster():
    choice = choose({"first": slow, "other": slow}, inputs(), grouped_attention, clock=Clock.read)
    assert choice.name == "first" and choice.milliseconds["first"] == choice.milliseconds["other"]
    assert choose({"first": broken}, inputs(), grouped_attention).name == "first"


def test_a_form_is_not_begun_after_the_budget():
    # The first form takes as long as it likes.
    clock = iter([0.0, 0.0, 2 * BUDGET_S, 3 * BUDGET_S + 1.0])
    choice = choose({"first": broken, "late": other}, inputs(), grouped_attention, clock=lambda: next(clock))
    assert choice.name == "first" and choice.refused["late"] == f"no time left of {BUDGET_S:g} s"


def test_the_forms_of_a_machine(monkeypatch: pytest.MonkeyPatch):
    assert list(attention_forms(torch.device("cpu"))) == [TORCHS_OWN]
    installed = {"flash_attn.cute"}
    monkeypatch.setattr(forms_module, "_is_installed", lambda package: package in installed)
    for capability, expected in (((9, 0), {"cuDNN", "flash", "FA4"}), ((8, 0), {"cuDNN", "flash"})):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert set(attention_forms(torch.device("cuda"))) == {TORCHS_OWN} | expected


def test_a_newer_flash_is_active_while_its_form_is_used(monkeypatch: pytest.MonkeyPatch):
    active: list[str | None] = [None]
    attention = torch.nn.attention
    monkeypatch.setattr(attention, "activate_flash_attention_impl", lambda name: active.append(name), raising=False)
    monkeypatch.setattr(attention, "restore_flash_attention_impl", lambda: active.append(None), raising=False)
    monkeypatch.setattr(attention, "current_flash_attention_impl", lambda: active[-1], raising=False)
    for name in ("torch", "FA3", "FA4", "flash", "cuDNN"):
        activate(name)
    assert active == [None, "FA3", None]


def flash_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    result: torch.Tensor,
    grad: torch.Tensor,
    sums: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, ...]:
    """The gradients of causal attention by hand: no graph can be recorded inside an operator. In place of `sums`."""
    assert causal and sums.shape == (q.shape[0], q.shape[2], q.shape[1])
    batch, length, groups, width = k.shape
    q, result, grad = (x.float().view(batch, length, groups, -1, width) for x in (q, result, grad))
    keys, values = k.float() * width**-0.5, v.float()
    scores = torch.einsum("bsgrc,btgc->bgrst", q, keys)
    p = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
    dp = torch.einsum("bsgrc,btgc->bgrst", grad, values) - (grad * result).sum(-1).permute(0, 2, 3, 1)[..., None]
    dq = torch.einsum("bgrst,btgc->bsgrc", p * dp, keys).flatten(2, 3)
    dk = torch.einsum("bgrst,bsgrc->btgc", p * dp, q) * width**-0.5
    return tuple(x.to(k.dtype) for x in (dq, dk, torch.einsum("bgrst,bsgrc->btgc", p, grad)))


@pytest.mark.slow
@pytest.mark.parametrize("values", [2, 5])
def test_flash_attention_4_whichever_release(values: int, monkeypatch: pytest.MonkeyPatch):
    """A package with the two functions of flash-attn-4, the first of which gives as many values as a release does."""

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, return_lse: bool) -> tuple[Any, ...]:
        assert causal and return_lse and all(x.is_contiguous() for x in (q, k, v))
        batch, length, heads, _ = q.shape
        return grouped_attention(q, k, v), torch.zeros(batch, heads, length), *[None] * (values - 2)

    package = types.SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=flash_backward)
    monkeypatch.setitem(sys.modules, MODULE, package)
    compiles = torch.compile(flash_attention_4, backend="aot_eager", fullgraph=True)
    choice = choose({"broken": broken, "FA4": flash_attention_4, "FA4 compiled": compiles}, inputs(), grouped_attention)
    assert choice.refused == {"broken": "RuntimeError: no kernel"} and set(choice.milliseconds) == {
        "FA4",
        "FA4 compiled",
    }


@pytest.fixture
def two_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with a slow form of its own, a wrong one and a fast one, for bfloat16 as it is on a GPU."""
    forms = {"torch": slow, "wrong": sees_the_future, "fast": other}
    monkeypatch.setattr(forms_module, "attention_forms", lambda device: forms)
    monkeypatch.setattr(forms_module, "choose", functools.partial(choose, clock=Clock.read))


BFLOAT16 = ("training.dtype=bfloat16", "training.compile=false")


def test_an_engine_trains_with_what_it_chose(two_forms: None):
    engine: Any = create_engine("torch", load_spec("tiny", BFLOAT16))
    engine.initialise(initial_weights(engine.spec))
    found = engine.warm_up(symbols(engine.spec))
    assert engine.ops.attend is other and engine.warm_up(symbols(engine.spec)) is found
    assert found["attention"]["name"] == "fast" and set(found["attention"]["refused"]) == {"wrong"}
    again: Any = create_engine("torch", engine.spec)
    again.initialise(initial_weights(again.spec))
    assert again.warm_up(symbols(again.spec), {"attention": "torch"})["attention"]["milliseconds"].keys() == {"torch"}
    assert again.ops.attend is slow, "a resumed run keeps what it had"
    for gone in ("wrong", "of another machine"):
        again = create_engine("torch", engine.spec)
        again.initialise(initial_weights(again.spec))
        assert again.warm_up(symbols(again.spec), {"attention": gone})["attention"]["name"] == "fast"
    for setting in ("training.dtype=float32", "model.attention.window=8"):
        plain: Any = create_engine("torch", load_spec("tiny", [*BFLOAT16, setting]))
        plain.initialise(initial_weights(plain.spec))
        assert plain.warm_up(symbols(plain.spec)) is None and plain.ops.attend is grouped_attention


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_records_the_choice_and_compiles_nothing_on_its_clock(
    two_forms: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    # What is compiled again is decided before a backend sees the graph, so a quick one serves.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    warm_up, counted = TrainingLoop._warm_up, torch._dynamo.utils.counters["stats"]
    before_clock: list[int] = []

    def watched(loop: TrainingLoop) -> None:
        warm_up(loop)
        before_clock.append(counted["unique_graphs"])

    monkeypatch.setattr(TrainingLoop, "_warm_up", watched)
    small = ("steps=6", "val_every_steps=2", "ema_decay=0.9", "dtype=bfloat16", "compile=true")
    settings = [f"training.{value}" for value in small]
    words = [word for setting in [*settings, "optimizer.ns_steps=1"] for word in ("--set", setting)]
    run = ["train", "tiny", "--engine", "torch", "--runs-dir", str(tmp_path), "--run", "a", "--no-finish"]
    assert main([*run, *words]) == 0
    assert before_clock[0] >= 3 and counted["unique_graphs"] == before_clock[0]
    torch._dynamo.reset()
    events = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert len([event for event in events if event["event"] == "validation"]) >= 3
    (choices,) = (event for event in events if event["event"] == "choices")
    assert choices["attention"]["name"] == "fast" and choices["attention"]["milliseconds"]["torch"] == 1e3 * SLOW_S
    assert chosen_names(events) == {"attention": "fast"}


def test_names_of_what_was_chosen():
    events = [{"event": "choices", "step": step, "attention": {"name": name}} for step, name in enumerate("ab")]
    assert chosen_names([*events, {"event": "start", "step": 0}]) == {"attention": "b"} and chosen_names([]) == {}
    assert chosen_names([{"event": "choices", "step": 0, "attention": {"name": 3}, "scan": "fla"}]) == {}
