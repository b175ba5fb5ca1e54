"""A pass over small arrays without the cost of walking through the model: its operations, recorded once.

For a step of one symbol Python spends more time on layers, names and shapes than on the operations. Recording runs a
pass on real arrays and writes down each operation on what comes from its inputs, as a line of a Python function; all
else (weights, and what is made of them alone) is a constant of that function. Shapes must stay as they were recorded.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.ops.protocol import Array, Ops

# Change what an operation remembers, so they are called even if nothing reads their results.
WITH_STATE = {"attention", "delayed", "lookback", "recurrent", "running_count", "self_attention", "symbol_context"}


class Recorded:
    """`function(*ops, params, *inputs)` as recorded with these inputs: called with others of the same shapes it gives
    the same as the function does. `result` is that of the recording."""

    def __init__(
        self, ops: Sequence[Ops], function: Callable[..., Array], params: Mapping[str, Array], inputs: Sequence[Array]
    ) -> None:
        tape = _Tape()
        traced = [tape.new(value) for value in inputs]
        constants = {name: _Traced(tape, value) for name, value in params.items()}
        result = function(*(_RecordingOps(each, tape) for each in ops), constants, *traced)
        self.result = result.value
        self._call = tape.compiled([each.name for each in traced], result.name)

    def __call__(self, *inputs: Array) -> Array:
        return self._call(*inputs)


class _RecordingOps:
    """An Ops that records on a tape what another one does."""

    def __init__(self, ops: Ops, tape: _Tape) -> None:
        self.ops, self.tape = ops, tape

    def __getattr__(self, verb: str) -> Any:
        method = getattr(self.ops, verb)

        def call(*arguments: Any, **named: Any) -> Any:
            return self.tape.record(method, arguments, named, verb in WITH_STATE)

        return call

    def cast_like(self, x: _Traced, like: _Traced) -> Any:
        # Of the other array only the dtype is read, which stays.
        return self.tape.record(lambda x: self.ops.cast_like(x, like.value), (x,), {})


class _Tape:
    """The lines of a recording: (name, expression, names that it reads, whether it has state)."""

    def __init__(self) -> None:
        self.constants: dict[str, Any] = {}
        self.lines: list[tuple[str, str, list[str], bool]] = []
        self.count = 0

    def new(self, value: Any, expression: str = "", reads: Sequence[str] = (), has_state: bool = False) -> _Traced:
        """The value of an expression under a new name; without one an input."""
        self.count += 1
        name = f"v{self.count}"
        if expression:
            self.lines.append((name, expression, list(reads), has_state))
        return _Traced(self, value, name)

    def record(self, function: Callable, arguments: tuple, named: dict[str, Any], has_state: bool = False) -> Any:
        """What a function gives; a line of the recording if it reads what comes from the inputs."""
        value, reads = function(*_values(arguments), **named), list[str]()
        words = [self.word(each, reads) for each in arguments] + [f"{key}={each!r}" for key, each in named.items()]
        for each in arguments:
            if isinstance(each, _Traced) and each.value is value and not has_state:
                return each
        if not reads:
            return tuple(_Traced(self, each) for each in value) if isinstance(value, tuple) else _Traced(self, value)
        whole = self.new(value, f"{self.constant(function)}({', '.join(words)})", reads, has_state)
        if not isinstance(value, tuple):
            return whole
        return tuple(self.new(each, f"{whole.name}[{index}]", [whole.name]) for index, each in enumerate(value))

    def word(self, value: Any, reads: list[str]) -> str:
        """The source text of an argument; adds the names that it reads."""
        if isinstance(value, _Traced):
            if not value.name:
                return self.constant(value.value)
            reads.append(value.name)
            return value.name
        if isinstance(value, list | tuple):
            inner = "".join(f"{self.word(each, reads)}, " for each in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if value is None or isinstance(value, bool | int | str):
            return repr(value)
        return self.constant(value)

    def constant(self, value: Any) -> str:
        """A name for a value that stays."""
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def compiled(self, inputs: list[str], result: str) -> Callable[..., Array]:
        """The recorded operations that the result needs, or that have state, as a function."""
        needed, kept = {result}, []
        for name, expression, reads, has_state in reversed(self.lines):
            if has_state or name in needed:
                needed.update(reads)
                kept.append(f"    {name} = {expression}\n")
        source = f"def call({', '.join(inputs)}):\n{''.join(reversed(kept))}    return {result}\n"
        exec(compile(source, "<recorded>", "exec"), self.constants)
        call: Callable[..., Array] = self.constants["call"]
        return call


class _Traced:
    """An array of a recording, with what the model does with arrays besides operations. Without a name a constant."""

    def __init__(self, tape: _Tape, value: Any, name: str = "") -> None:
        self.tape, self.value, self.name = tape, value, name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    def reshape(self, shape: tuple[int, ...]) -> _Traced:
        return self.tape.record(lambda x: x.reshape(shape), (self,), {})

    def __getitem__(self, index: Any) -> _Traced:
        return self.tape.record(lambda x: x[index], (self,), {})

    def __add__(self, other: Any) -> _Traced:
        return self.tape.record(operator.add, (self, other), {})

    def __sub__(self, other: Any) -> _Traced:
        return self.tape.record(operator.sub, (self, other), {})

    def __mul__(self, other: Any) -> _Traced:
        return self.tape.record(operator.mul, (self, other), {})

    def __truediv__(self, other: Any) -> _Traced:
        return self.tape.record(operator.truediv, (self, other), {})

    def __mod__(self, other: Any) -> _Traced:
        return self.tape.record(operator.mod, (self, other), {})

    def __matmul__(self, other: Any) -> _Traced:
        return self.tape.record(operator.matmul, (self, other), {})

    def __radd__(self, other: Any) -> _Traced:
        return self.tape.record(operator.add, (other, self), {})

    def __rsub__(self, other: Any) -> _Traced:
        return self.tape.record(operator.sub, (other, self), {})

    def __rmul__(self, other: Any) -> _Traced:
        return self.tape.record(operator.mul, (other, self), {})


def _values(given: Any) -> Any:
    """Arguments with real arrays in place of traced ones."""
    if isinstance(given, _Traced):
        return given.value
    if isinstance(given, list | tuple):
        return type(given)(_values(each) for each in given)
    return given
