"""Kernels that a step of the MLX engine launches on a GPU, counted in the graphs that it evaluates."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import mlx_train  # noqa: F401  before mlx.core

import mlx.core as mx  # isort: skip

# Primitives that make another view of the same memory.
VIEWS = {
    *("Broadcast", "BroadcastAxes", "Copy", "CustomTransforms", "Depends", "ExpandDims", "Flatten", "Reshape", "Slice"),
    *("Split", "Squeeze", "StopGradient", "Transpose", "Unflatten"),
}
# Primitives that copy their first input before they change it.
COPIED = ("SliceUpdate", "Scatter")
NODE = re.compile(r'^\{ (\d+) \[label ="([^"]*)"', re.MULTILINE)
INPUT = re.compile(r"-> (\d+)$", re.MULTILINE)
OUTPUT = re.compile(r"^(\d+) -> ", re.MULTILINE)
# Metal gives a kernel this many arguments; MLX needs three beside the arrays (mlx/backend/metal/compiled.cpp).
MOST_ARRAYS = 31 - 3


def launches(*results: Any) -> Counter[str]:
    """Kernels by name of primitive that evaluating these arrays, or trees of arrays, would launch.

    A primitive is one kernel, a concatenation one for each input (mlx/backend/gpu/copy.cpp), a view none. That is less
    than happens: a reshape may copy, and a large sum takes two passes. No fused kernel has too many arrays for Metal.
    """
    dot = io.StringIO()
    mx.export_to_dot(dot, *_arrays(results))
    inputs, outputs = (Counter(edges.findall(dot.getvalue())) for edges in (INPUT, OUTPUT))
    found: Counter[str] = Counter()
    for number, name in NODE.findall(dot.getvalue()):
        assert not name.startswith("Compiled") or inputs[number] + outputs[number] <= MOST_ARRAYS, name
        if name not in VIEWS:
            found[name] += inputs[number] if name == "Concatenate" else 2 if name.startswith(COPIED) else 1
    return found


def counted(step: Callable[[], Any]) -> list[Counter[str]]:
    """The launches of each evaluation that a function asks for, in order."""
    found: list[Counter[str]] = []
    with pytest.MonkeyPatch.context() as patched:
        for name in ("eval", "async_eval"):
            evaluate = getattr(mx, name)

            def counts(*results: Any, evaluate: Callable[..., None] = evaluate) -> None:
                found.append(launches(*results))
                evaluate(*results)

            patched.setattr(mx, name, counts)
        step()
    return found


def _arrays(tree: Any) -> list[mx.array]:
    if isinstance(tree, mx.array):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [array for value in values for array in _arrays(value)]
