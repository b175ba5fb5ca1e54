"""An Ops around another one, the base of traces, statistics and planted choices on any engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.ops.composed import ComposedOps
from shared.ops.protocol import Array, Ops


class WrappedOps(ComposedOps):
    """Passes every operation on to `ops`, composed ones as the operations they are made of. A subclass defines those
    that it watches or changes."""

    def __init__(self, ops: Ops, params: Mapping[str, Array] | None = None) -> None:
        self.ops = ops
        # Kept, so that no other array takes the identity of one of them.
        self._params = dict(params or {})
        self._names = {id(value): name for name, value in self._params.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def name_of(self, value: Any) -> str | None:
        """The name of the parameter that an argument of an operation is, if it is one."""
        return self._names.get(id(value))
