"""Short names for the locals of functions.

A name is given to all that bears the old one in a function, whatever the scope in it, so no scope needs to be known:
it is enough that the old name means nothing else there, and that the new one is free.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import string
from collections import Counter
from collections.abc import Collection, Iterator

from shared.script.strip import is_plain

BUILTINS = frozenset(dir(builtins))


def rename_locals(body: list[ast.stmt], globals_: Collection[str], fixed: Collection[str], *, parameters: bool) -> None:
    """Rename in place in every function and method of a module. `globals_` are the names of the module, `fixed` those
    that a parameter keeps because a call may give it by name; parameters keep theirs unless `parameters`."""
    for statement in body:
        members = statement.body if isinstance(statement, ast.ClassDef) else [statement]
        for member in members:
            if isinstance(member, ast.FunctionDef) and is_plain(member):
                _rename(member, globals_, fixed, parameters)


def _rename(function: ast.FunctionDef, globals_: Collection[str], fixed: Collection[str], parameters: bool) -> None:
    names = _Names()
    for node in [function.args, *function.body]:
        names.visit(node)
    locked = names.locked | set(globals_) | BUILTINS
    if not parameters:
        locked |= names.parameters
    else:
        locked |= names.parameters & set(fixed)
    chosen = [name for name, _ in names.count.most_common() if name in names.bound - locked]
    taken = (set(names.count) | names.locked | set(globals_)) - set(chosen)
    free = (name for name in _short_names() if name not in taken and name not in BUILTINS)
    _Renamer(dict(zip(chosen, free, strict=False))).apply(function)


def _short_names() -> Iterator[str]:
    letters = string.ascii_lowercase + string.ascii_uppercase
    yield from letters
    for first, second in itertools.product(letters, letters):
        if first + second not in ("as", "if", "in", "is", "or"):
            yield first + second


class _Names(ast.NodeVisitor):
    """Counts the names in a function; `bound` are those that it binds, `locked` those that must stay."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.bound: set[str] = set()
        self.parameters: set[str] = set()
        self.locked: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        self.count[node.id] += 1
        if not isinstance(node.ctx, ast.Load):
            self.bound.add(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        self.count[node.arg] += 1
        self.bound.add(node.arg)
        self.parameters.add(node.arg)
        self.generic_visit(node)

    def visit_arguments(self, node: ast.arguments) -> None:
        self.generic_visit(node)
        # Nothing gives these by name.
        self.parameters -= {item.arg for item in (node.vararg, node.kwarg, *node.posonlyargs) if item}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.count[node.name] += 1
        self.bound.add(node.name)
        if not is_plain(node):
            self.locked.update(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))
            self.locked.update(inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg))
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.locked.update(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))
        self.locked.add(node.name)
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._bind(node.name)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self._bind(node.name)
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        self._bind(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self._bind(node.rest)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self.locked.update(node.names)

    def visit_alias(self, node: ast.alias) -> None:
        self.locked.add(node.asname or node.name.partition(".")[0])

    def _bind(self, name: str | None) -> None:
        if name:
            self.count[name] += 1
            self.bound.add(name)


class _Renamer(ast.NodeVisitor):
    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def apply(self, function: ast.FunctionDef) -> None:
        """Rename in the parameters and the body of a function, not in its name and decorators."""
        for node in [function.args, *function.body]:
            self.visit(node)

    def visit(self, node: ast.AST) -> None:
        for field in ("id", "arg", "name", "rest"):
            if isinstance(node, ast.keyword | ast.alias | ast.ClassDef):
                break
            old = getattr(node, field, None)
            if isinstance(old, str):
                setattr(node, field, self.names.get(old, old))
        if isinstance(node, ast.Nonlocal):
            node.names = [self.names.get(name, name) for name in node.names]
        self.generic_visit(node)
