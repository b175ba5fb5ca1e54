"""One of several implementations of an operation, chosen by its time on the arrays that training will give it.

Parity is the judge before time is: a form whose result or gradients are off, or which fails, is refused, and why is
kept. Nothing here knows which operation it is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from cuda_train import device
from shared.tolerances import BF16_OPERATION_REL

Form = Callable[..., torch.Tensor]

# Seconds after the first form, which wakes the device up, from which on no other is begun; turns of a form, and passes
# of a turn.
BUDGET_S = 4.0
TURNS, PASSES = 3, 5
# A form must be this much faster than the first to replace it: less is noise, and would change what is compiled from
# one start to the next.
LEAST_GAIN = 1.02


@dataclass
class Choice:
    """`name` is the form that was chosen; `milliseconds` of a forward and a backward pass, the median of a few, of each
    form that was timed; `refused`: why a form was not."""

    name: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def choose(
    forms: Mapping[str, Form],
    inputs: Sequence[torch.Tensor],
    exact: Form,
    prepare: Callable[[str], None] = lambda name: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """The fastest form on `inputs` [B, ...], of which B are independent of each other; the first where none is faster.
    A result has the shape of the first input.

    `exact` gives what is right in float32, and is asked about the first of the B. `prepare` is called with a name
    before the calls of that form.
    """
    first = next(iter(forms))
    weights = _weights(inputs)
    right = _right(exact, inputs)
    choice = Choice(first)
    begin_s = clock()
    for name, form in forms.items():
        if clock() - begin_s > BUDGET_S:
            choice.refused[name] = f"no time left of {BUDGET_S:g} s"
            continue
        try:
            prepare(name)
            problem = _problem(_results(form, inputs, weights), right)
            if problem:
                choice.refused[name] = problem
            else:
                choice.milliseconds[name] = _milliseconds(form, inputs, weights, clock)
        # A package of others may raise anything.
        except Exception as error:
            choice.refused[name] = _in_short(error)
        if name == first:
            begin_s = clock()
    times = choice.milliseconds
    fastest = min(times, key=lambda name: times[name], default=first)
    if first not in times or times[first] > LEAST_GAIN * times[fastest]:
        choice.name = fastest
    return choice


def problem_of(form: Form, inputs: Sequence[torch.Tensor], exact: Form) -> str:
    """Why a form is refused, or nothing: see `choose`."""
    try:
        return _problem(_results(form, inputs, _weights(inputs)), _right(exact, inputs))
    except Exception as error:
        return _in_short(error)


def _right(exact: Form, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return _results(exact, [x[:1].float() for x in inputs], _weights(inputs))


def _weights(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the loss of a comparison weighs a result [B, ...] with."""
    return torch.randn(inputs[0].shape[1:], generator=torch.Generator().manual_seed(0)).to(inputs[0].device)


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _results(form: Form, inputs: Sequence[torch.Tensor], weights: torch.Tensor) -> list[torch.Tensor]:
    """The result of a form and the gradients of its inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    result = form(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, weights.to(result.dtype).expand(result.shape))]


def _problem(found: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> str:
    """What is off in the first of B results, or nothing."""
    for index, (value, expected) in enumerate(zip(found, right, strict=True)):
        off = float((value[:1].float() - expected).norm() / expected.norm())
        if not off <= BF16_OPERATION_REL:
            what = f"gradient {index}" if index else "result"
            return f"{what} off by {off:.1e}, at most {BF16_OPERATION_REL:.0e} is allowed"
    return ""


def _milliseconds(
    form: Form, inputs: Sequence[torch.Tensor], weights: torch.Tensor, clock: Callable[[], float]
) -> float:
    """Of one pass, the median of some turns of several passes: what the host does for one hides behind another."""
    spent = []
    for _ in range(TURNS):
        _wait()
        begin_s = clock()
        for _ in range(PASSES):
            _results(form, inputs, weights)
        _wait()
        spent.append(1e3 * (clock() - begin_s) / PASSES)
    return round(statistics.median(spent), 4)


def _wait() -> None:
    if device.on_gpu():
        torch.cuda.synchronize()
