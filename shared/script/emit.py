"""Python source from a syntax tree, in few characters: no blank that the grammar does not ask for.

`ast.unparse` writes for readers, and what it writes differs between versions of Python. This is the same text on every
version, because the counted bytes of a run may not depend on where they were counted. It is valid from Python 3.11 on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

from shared.script.expressions import BINARY, NAMED, TERNARY, expression, named_argument, parameter_list, words


def emit(tree: ast.Module) -> str:
    """The source of a module. Raises ValueError for syntax that the house does not use (async, type parameters)."""
    return "".join(_block(tree.body, 0))


def _block(body: Iterable[ast.stmt], depth: int) -> Iterable[str]:
    """The lines of statements; simple ones that follow each other share a line."""
    line = ""
    for statement in body:
        simple = _simple(statement)
        if simple is not None:
            line += f";{simple}" if line else simple
            continue
        if line:
            yield f"{' ' * depth}{line}\n"
            line = ""
        yield from _compound(statement, depth)
    if line:
        yield f"{' ' * depth}{line}\n"


def _clause(head: str, body: Sequence[ast.stmt], depth: int) -> Iterable[str]:
    """A head with its colon and its body, on one line if the body is simple."""
    simple = [_simple(statement) for statement in body]
    texts = [text for text in simple if text is not None]
    if len(texts) == len(simple):
        yield f"{' ' * depth}{head}:{';'.join(texts)}\n"
    else:
        yield f"{' ' * depth}{head}:\n"
        yield from _block(body, depth + 1)


def _simple(node: ast.stmt) -> str | None:
    """The text of a statement without a body; None for one that has a body."""
    match node:
        case ast.Expr(value):
            return expression(value)
        case ast.Assign(targets, value):
            return "=".join([*(expression(target) for target in targets), expression(value)])
        case ast.AugAssign(target, operator, value):
            return f"{expression(target)}{BINARY[type(operator)][0]}={expression(value)}"
        case ast.AnnAssign(target, annotation, value, simple):
            name = expression(target) if simple or not isinstance(target, ast.Name) else f"({expression(target)})"
            return f"{name}:{expression(annotation, TERNARY)}" + ("" if value is None else f"={expression(value)}")
        case ast.Return(value):
            return "return" if value is None else words("return", expression(value))
        case ast.Raise(error, cause):
            text = "raise" if error is None else words("raise", expression(error, NAMED))
            return text if cause is None else words(text, "from", expression(cause, NAMED))
        case ast.Assert(test, message):
            text = words("assert", expression(test, NAMED))
            return text if message is None else f"{text},{expression(message, NAMED)}"
        case ast.Delete(targets):
            return words("del", ",".join(expression(target, NAMED) for target in targets))
        case ast.Pass():
            return "pass"
        case ast.Break():
            return "break"
        case ast.Continue():
            return "continue"
        case ast.Global(names):
            return f"global {','.join(names)}"
        case ast.Nonlocal(names):
            return f"nonlocal {','.join(names)}"
        case ast.Import(names):
            return f"import {','.join(map(_alias, names))}"
        case ast.ImportFrom(module, names, level):
            return words("from", f"{'.' * level}{module or ''}", "import", ",".join(map(_alias, names)))
    return None


def _alias(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def _compound(node: ast.stmt, depth: int) -> Iterable[str]:
    """The lines of a statement with a body."""
    match node:
        case ast.FunctionDef():
            yield from _decorators(node.decorator_list, depth)
            returned = "" if node.returns is None else f"->{expression(node.returns, TERNARY)}"
            yield from _clause(f"def {node.name}({parameter_list(node.args)}){returned}", node.body, depth)
        case ast.ClassDef():
            yield from _decorators(node.decorator_list, depth)
            bases = ",".join([*(expression(base, NAMED) for base in node.bases), *map(named_argument, node.keywords)])
            yield from _clause(f"class {node.name}" + (f"({bases})" if bases else ""), node.body, depth)
        case ast.If():
            yield from _if(node, "if", depth)
        case ast.For():
            head = words("for", expression(node.target), "in", expression(node.iter))
            yield from _clause(head, node.body, depth)
            yield from _otherwise("else", node.orelse, depth)
        case ast.While():
            yield from _clause(words("while", expression(node.test, NAMED)), node.body, depth)
            yield from _otherwise("else", node.orelse, depth)
        case ast.With():
            items = (
                words(expression(item.context_expr, NAMED), "as", expression(item.optional_vars, TERNARY))
                if item.optional_vars
                else expression(item.context_expr, NAMED)
                for item in node.items
            )
            yield from _clause(words("with", ",".join(items)), node.body, depth)
        case ast.Try():
            yield from _try(node, depth)
        case ast.Match():
            yield f"{' ' * depth}{words('match', expression(node.subject))}:\n"
            for case in node.cases:
                head = words("case", _pattern(case.pattern))
                head = head if case.guard is None else words(head, "if", expression(case.guard, NAMED))
                yield from _clause(head, case.body, depth + 1)
        case _:
            raise ValueError(f"a self-contained script cannot hold {type(node).__name__}")


def _decorators(decorators: Iterable[ast.expr], depth: int) -> Iterable[str]:
    return (f"{' ' * depth}@{expression(decorator, NAMED)}\n" for decorator in decorators)


def _otherwise(head: str, body: Sequence[ast.stmt], depth: int) -> Iterable[str]:
    return _clause(head, body, depth) if body else ()


def _if(node: ast.If, word: str, depth: int) -> Iterable[str]:
    yield from _clause(words(word, expression(node.test, NAMED)), node.body, depth)
    if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        yield from _if(node.orelse[0], "elif", depth)
    else:
        yield from _otherwise("else", node.orelse, depth)


def _try(node: ast.Try, depth: int) -> Iterable[str]:
    yield from _clause("try", node.body, depth)
    for handler in node.handlers:
        head = "except" if handler.type is None else words("except", expression(handler.type, NAMED))
        yield from _clause(f"{head} as {handler.name}" if handler.name else head, handler.body, depth)
    yield from _otherwise("else", node.orelse, depth)
    yield from _otherwise("finally", node.finalbody, depth)


def _pattern(node: ast.pattern) -> str:
    """A pattern of a case, in brackets where another pattern may surround it."""
    match node:
        case ast.MatchValue(value):
            return expression(value)
        case ast.MatchSingleton(value):
            return repr(value)
        case ast.MatchSequence(patterns):
            return f"[{','.join(map(_pattern, patterns))}]"
        case ast.MatchStar(name):
            return f"*{name or '_'}"
        case ast.MatchMapping(keys, patterns, rest):
            pairs = [f"{expression(key)}:{_pattern(value)}" for key, value in zip(keys, patterns, strict=True)]
            return "{" + ",".join([*pairs, *([f"**{rest}"] if rest else [])]) + "}"
        case ast.MatchClass(cls, patterns, names, values):
            named = [f"{name}={_pattern(value)}" for name, value in zip(names, values, strict=True)]
            return f"{expression(cls)}({','.join([*map(_pattern, patterns), *named])})"
        case ast.MatchAs(None, name):
            return name or "_"
        case ast.MatchAs(pattern, name) if pattern is not None:
            return f"({words(_pattern(pattern), 'as', str(name))})"
        case ast.MatchOr(patterns):
            return f"({'|'.join(map(_pattern, patterns))})"
    raise ValueError(f"a self-contained script cannot hold {type(node).__name__}")
