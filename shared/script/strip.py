"""Removes what a reader needs of a module and a machine does not: docstrings, annotations, assertions, descriptions.

Annotations stay where something reads them: in models of pydantic, in dataclasses that pydantic validates, and in
functions whose decorator is not known to leave them alone (a kernel's compiler reads them as code).
"""

from __future__ import annotations

import ast

# Decorators that look at neither the annotations nor the names of parameters and locals.
PLAIN_DECORATORS = {
    "cache",
    "cached_property",
    "classmethod",
    "contextmanager",
    "dataclass",
    "lru_cache",
    "no_grad",
    "override",
    "property",
    "staticmethod",
    "wraps",
}
# What a class annotation says to `dataclass` itself.
DATACLASS_WORDS = ("ClassVar", "InitVar", "KW_ONLY")


def decorator_name(decorator: ast.expr) -> str:
    """The last word of a decorator: `contextmanager` of `@contextlib.contextmanager`."""
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return target.attr if isinstance(target, ast.Attribute) else target.id if isinstance(target, ast.Name) else ""


def is_plain(function: ast.FunctionDef) -> bool:
    """Whether no decorator of a function may read its annotations or the names in it."""
    return all(decorator_name(decorator) in PLAIN_DECORATORS for decorator in function.decorator_list)


def strip(tree: ast.Module) -> ast.Module:
    """The module without what readers alone need, in place, but for the annotations in its classes (`strip_fields`)."""
    stripped = _Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


def strip_fields(node: ast.ClassDef) -> ast.ClassDef:
    """A class whose annotations nobody validates, without them; `dataclass` and `NamedTuple` only count them."""
    counted = any(decorator_name(decorator) == "dataclass" for decorator in node.decorator_list)
    # A named tuple asks for a type.
    typed = any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in node.bases)
    body: list[ast.stmt] = []
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or any(word in ast.dump(item.annotation) for word in DATACLASS_WORDS):
            body.append(item)
        elif counted or typed:
            body.append(ast.AnnAssign(item.target, ast.Constant(None if typed else 0), item.value, item.simple))
        elif item.value is not None:
            body.append(ast.Assign([item.target], item.value))
    return ast.ClassDef(node.name, node.bases, node.keywords, body or [ast.Pass()], node.decorator_list)


class _Strip(ast.NodeTransformer):
    def __init__(self) -> None:
        # Whether a statement belongs to the body of a class, not to a function or a module.
        self.in_class = False

    def visit_Module(self, node: ast.Module) -> ast.Module:
        node.body = self._body(node.body)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        outer, self.in_class = self.in_class, True
        node.body = self._body(node.body) or [ast.Pass()]
        self.in_class = outer
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        outer, self.in_class = self.in_class, False
        node.args = self.visit(node.args)
        if is_plain(node):
            node.returns = None
            arguments = node.args
            several = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            for argument in [*several, *filter(None, (arguments.vararg, arguments.kwarg))]:
                argument.annotation = None
        node.body = self._body(node.body) or [ast.Pass()]
        self.in_class = outer
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt | None:
        node.value = None if node.value is None else self.visit(node.value)
        if self.in_class:
            return node
        return None if node.value is None else ast.Assign([node.target], node.value)

    def visit_Assert(self, node: ast.Assert) -> None:
        """Assertions are of internal invariants, and tests have checked those."""

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt] | None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return self._body(node.orelse)
        node.test = self.visit(node.test)
        node.body, node.orelse = self._body(node.body) or [ast.Pass()], self._body(node.orelse)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "cast" and len(node.args) == 2:
            return node.args[1]
        if isinstance(node.func, ast.Name) and node.func.id == "Field":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "description"]
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.For | ast.While | ast.With | ast.Try | ast.ExceptHandler | ast.match_case):
            # Nothing may be left of an assertion, say.
            node.body = node.body or [ast.Pass()]
        return node

    def _body(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """Statements without docstrings and other strings that stand alone."""
        left: list[ast.stmt] = []
        for statement in body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue
            found = self.visit(statement)
            left += found if isinstance(found, list) else [] if found is None else [found]
        return left
