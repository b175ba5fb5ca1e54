"""Short names for the locals of functions, and for what a module has for itself.

A name is given to all that bears the old one in a function or module, whatever the scope in it, so no scope needs to be
known: it is enough that the old name means nothing else there, and that the new one is free.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import keyword
import string
from collections import Counter
from collections.abc import Collection, Iterator

from shared.script.house import bound_names
from shared.script.strip import is_plain

BUILTINS = frozenset(dir(builtins))


def rename_globals(body: list[ast.stmt], names: Collection[str], fixed: Collection[str]) -> set[str]:
    """Rename in place the functions and values at the top of a module but for those that are `fixed`, because others
    know them; returns the names of the module after that, `names` being those before. Classes keep theirs, which
    messages show."""
    top = Counter(name for item in body if not isinstance(item, ast.ClassDef) for name in bound_names(item))
    everywhere, seen = Counter[str](), set(names)
    for node in itertools.chain.from_iterable(map(ast.walk, body)):
        bound = list(_bound(node))
        everywhere.update(bound)
        seen.update(bound, [node.id] if isinstance(node, ast.Name) else ())
    chosen = [
        name
        for name, count in top.most_common()
        # What is bound anywhere else is a local too, or imported.
        if everywhere[name] == count and name not in fixed and not name.startswith("__")
    ]
    free = (name for name in _short_names(string.ascii_uppercase) if name not in seen and name not in BUILTINS)
    renamed = dict(zip(chosen, free, strict=False))
    for item in body:
        _Renamer(renamed).visit(item)
    return {renamed.get(name, name) for name in names}


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a node itself binds or declares, in any scope."""
    match node:
        case ast.Name(name, ast.Store() | ast.Del()) | ast.arg(name):
            yield name
        case ast.FunctionDef(name) | ast.ClassDef(name) | ast.MatchAs(_, str(name)) | ast.MatchStar(str(name)):
            yield name
        case ast.ExceptHandler(_, str(name)) | ast.MatchMapping(_, _, str(name)):
            yield name
        case ast.Global(names) | ast.Nonlocal(names):
            yield from names
        case ast.alias(name, other):
            yield other or name.partition(".")[0]


def rename_locals(body: list[ast.stmt], globals_: Collection[str], fixed: Collection[str], *, parameters: bool) -> None:
    """Rename in place in every function and method of a module. `globals_` are the names of the module, `fixed` those
    that a parameter keeps because a call may give it by name; parameters keep theirs unless `parameters`."""
    for statement in body:
        members = statement.body if isinstance(statement, ast.ClassDef) else [statement]
        for member in members:
            if isinstance(member, ast.FunctionDef):
                # A decorator may read the names of parameters, as a kernel's compiler does, but none those of locals.
                _rename(member, globals_, fixed, parameters and is_plain(member))


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


def _short_names(first: str = string.ascii_letters) -> Iterator[str]:
    """The letters of `first`, then all pairs of letters."""
    letters = string.ascii_letters
    yield from first
    yield from (name for name in map("".join, itertools.product(letters, letters)) if not keyword.iskeyword(name))


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
