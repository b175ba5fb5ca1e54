"""Python source from a syntax tree, in few characters: no blank that the grammar does not ask for.

`ast.unparse` writes for readers, and what it writes differs between versions of Python. This is the same text on every
version, because the counted bytes of a run may not depend on where they were counted. It is valid from Python 3.11 on,
whose f-strings hold neither a backslash nor their own quotes in an expression.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

# How tightly operators bind, loosest first; the operands of a comparison bind more tightly than the comparison.
LOOSE, NAMED, TERNARY, OR, AND, NOT, COMPARE, BIT_OR = range(8)
BIT_XOR, BIT_AND, SHIFT, SUM, PRODUCT, UNARY, POWER, ATOM = range(8, 16)

BINARY: dict[type[ast.operator], tuple[str, int]] = {
    ast.BitOr: ("|", BIT_OR),
    ast.BitXor: ("^", BIT_XOR),
    ast.BitAnd: ("&", BIT_AND),
    ast.LShift: ("<<", SHIFT),
    ast.RShift: (">>", SHIFT),
    ast.Add: ("+", SUM),
    ast.Sub: ("-", SUM),
    ast.Mult: ("*", PRODUCT),
    ast.MatMult: ("@", PRODUCT),
    ast.Div: ("/", PRODUCT),
    ast.FloorDiv: ("//", PRODUCT),
    ast.Mod: ("%", PRODUCT),
    ast.Pow: ("**", POWER),
}
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}
PREFIXES: dict[type[ast.unaryop], tuple[str, int]] = {
    ast.Not: ("not", NOT),
    ast.USub: ("-", UNARY),
    ast.UAdd: ("+", UNARY),
    ast.Invert: ("~", UNARY),
}
QUOTES = ('"', "'", '"""', "'''")
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class CannotQuoteError(ValueError):
    """A string that no quotes fit: an f-string in an f-string in an f-string, or a backslash in an expression."""


def emit(tree: ast.Module) -> str:
    """The source of a module. Raises ValueError for syntax that the house does not use (async, type parameters)."""
    return "".join(_block(tree.body, 0))


def words(*parts: str) -> str:
    """The parts in a row, with a blank where two would become one word."""
    text = ""
    for part in parts:
        if text and part and _is_word(text[-1]) and _is_word(part[0]):
            text += " "
        text += part
    return text


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_" or character > "\x7f"


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
            return _expression(value)
        case ast.Assign(targets, value):
            return "=".join([*(_expression(target) for target in targets), _expression(value)])
        case ast.AugAssign(target, operator, value):
            return f"{_expression(target)}{BINARY[type(operator)][0]}={_expression(value)}"
        case ast.AnnAssign(target, annotation, value, simple):
            name = _expression(target) if simple or not isinstance(target, ast.Name) else f"({_expression(target)})"
            return f"{name}:{_expression(annotation, TERNARY)}" + ("" if value is None else f"={_expression(value)}")
        case ast.Return(value):
            return "return" if value is None else words("return", _expression(value))
        case ast.Raise(error, cause):
            text = "raise" if error is None else words("raise", _expression(error, NAMED))
            return text if cause is None else words(text, "from", _expression(cause, NAMED))
        case ast.Assert(test, message):
            text = words("assert", _expression(test, NAMED))
            return text if message is None else f"{text},{_expression(message, NAMED)}"
        case ast.Delete(targets):
            return words("del", ",".join(_expression(target, NAMED) for target in targets))
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
            returned = "" if node.returns is None else f"->{_expression(node.returns, TERNARY)}"
            yield from _clause(f"def {node.name}({_parameters(node.args)}){returned}", node.body, depth)
        case ast.ClassDef():
            yield from _decorators(node.decorator_list, depth)
            bases = ",".join([*(_expression(base, NAMED) for base in node.bases), *map(_keyword, node.keywords)])
            yield from _clause(f"class {node.name}" + (f"({bases})" if bases else ""), node.body, depth)
        case ast.If():
            yield from _if(node, "if", depth)
        case ast.For():
            head = words("for", _expression(node.target), "in", _expression(node.iter))
            yield from _clause(head, node.body, depth)
            yield from _otherwise("else", node.orelse, depth)
        case ast.While():
            yield from _clause(words("while", _expression(node.test, NAMED)), node.body, depth)
            yield from _otherwise("else", node.orelse, depth)
        case ast.With():
            items = (
                words(_expression(item.context_expr, NAMED), "as", _expression(item.optional_vars, TERNARY))
                if item.optional_vars
                else _expression(item.context_expr, NAMED)
                for item in node.items
            )
            yield from _clause(words("with", ",".join(items)), node.body, depth)
        case ast.Try():
            yield from _try(node, depth)
        case ast.Match():
            yield f"{' ' * depth}{words('match', _expression(node.subject))}:\n"
            for case in node.cases:
                head = words("case", _pattern(case.pattern))
                head = head if case.guard is None else words(head, "if", _expression(case.guard, NAMED))
                yield from _clause(head, case.body, depth + 1)
        case _:
            raise ValueError(f"a self-contained script cannot hold {type(node).__name__}")


def _decorators(decorators: Iterable[ast.expr], depth: int) -> Iterable[str]:
    return (f"{' ' * depth}@{_expression(decorator, NAMED)}\n" for decorator in decorators)


def _otherwise(head: str, body: Sequence[ast.stmt], depth: int) -> Iterable[str]:
    return _clause(head, body, depth) if body else ()


def _if(node: ast.If, word: str, depth: int) -> Iterable[str]:
    yield from _clause(words(word, _expression(node.test, NAMED)), node.body, depth)
    if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        yield from _if(node.orelse[0], "elif", depth)
    else:
        yield from _otherwise("else", node.orelse, depth)


def _try(node: ast.Try, depth: int) -> Iterable[str]:
    yield from _clause("try", node.body, depth)
    for handler in node.handlers:
        head = "except" if handler.type is None else words("except", _expression(handler.type, NAMED))
        yield from _clause(f"{head} as {handler.name}" if handler.name else head, handler.body, depth)
    yield from _otherwise("else", node.orelse, depth)
    yield from _otherwise("finally", node.finalbody, depth)


def _pattern(node: ast.pattern) -> str:
    """A pattern of a case, in brackets where another pattern may surround it."""
    match node:
        case ast.MatchValue(value):
            return _expression(value)
        case ast.MatchSingleton(value):
            return repr(value)
        case ast.MatchSequence(patterns):
            return f"[{','.join(map(_pattern, patterns))}]"
        case ast.MatchStar(name):
            return f"*{name or '_'}"
        case ast.MatchMapping(keys, patterns, rest):
            pairs = [f"{_expression(key)}:{_pattern(value)}" for key, value in zip(keys, patterns, strict=True)]
            return "{" + ",".join([*pairs, *([f"**{rest}"] if rest else [])]) + "}"
        case ast.MatchClass(cls, patterns, names, values):
            named = [f"{name}={_pattern(value)}" for name, value in zip(names, values, strict=True)]
            return f"{_expression(cls)}({','.join([*map(_pattern, patterns), *named])})"
        case ast.MatchAs(None, name):
            return name or "_"
        case ast.MatchAs(pattern, name) if pattern is not None:
            return f"({words(_pattern(pattern), 'as', str(name))})"
        case ast.MatchOr(patterns):
            return f"({'|'.join(map(_pattern, patterns))})"
    raise ValueError(f"a self-contained script cannot hold {type(node).__name__}")


def _parameters(arguments: ast.arguments) -> str:
    """The parameters of a function, with annotations and defaults."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    texts = [_parameter(*pair) for pair in zip(positional, defaults, strict=True)]
    if arguments.posonlyargs:
        texts.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg:
        texts.append(f"*{_parameter(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        texts.append("*")
    texts += [_parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg:
        texts.append(f"**{_parameter(arguments.kwarg, None)}")
    return ",".join(texts)


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    annotation = "" if argument.annotation is None else f":{_expression(argument.annotation, TERNARY)}"
    return f"{argument.arg}{annotation}" + ("" if default is None else f"={_expression(default, TERNARY)}")


def _expression(node: ast.expr, least: int = LOOSE, quotes: Sequence[str] = QUOTES) -> str:
    """The text of an expression, in brackets if it binds more loosely than `least`. Strings in it have one of `quotes`,
    which an f-string around it does not have."""
    text, binds = _bound(node, quotes)
    return text if binds >= least else f"({text})"


def _bound(node: ast.expr, quotes: Sequence[str]) -> tuple[str, int]:
    """The text of an expression and how tightly it binds."""

    def sub(inner: ast.expr, least: int = LOOSE) -> str:
        return _expression(inner, least, quotes)

    def listed(items: Iterable[ast.expr]) -> str:
        return ",".join(sub(item, NAMED) for item in items)

    match node:
        case ast.Name(name):
            return name, ATOM
        case ast.Constant(value):
            return _constant(value, quotes), ATOM
        case ast.Attribute(value, name):
            number = isinstance(value, ast.Constant) and isinstance(value.value, int)
            return (f"({sub(value)}).{name}" if number else f"{sub(value, ATOM)}.{name}"), ATOM
        case ast.Call(function, arguments, keywords):
            if len(arguments) == 1 and not keywords and isinstance(arguments[0], ast.GeneratorExp):
                return f"{sub(function, ATOM)}{sub(arguments[0])}", ATOM
            named = [_keyword(keyword, quotes) for keyword in keywords]
            return f"{sub(function, ATOM)}({','.join([*(sub(item, NAMED) for item in arguments), *named])})", ATOM
        case ast.Subscript(value, index):
            return f"{sub(value, ATOM)}[{_index(index, quotes)}]", ATOM
        case ast.BinOp(left, operator, right):
            sign, level = BINARY[type(operator)]
            if sign == "**":
                return f"{sub(left, ATOM)}**{sub(right, UNARY)}", POWER
            return words(sub(left, level), sign, sub(right, level + 1)), level
        case ast.UnaryOp(operator, operand):
            sign, level = PREFIXES[type(operator)]
            return words(sign, sub(operand, level)), level
        case ast.BoolOp(operator, values):
            word, level = ("or", OR) if isinstance(operator, ast.Or) else ("and", AND)
            parts = [sub(value, level + 1) for value in values]
            return words(parts[0], *(part for value in parts[1:] for part in (word, value))), level
        case ast.Compare(left, operators, values):
            parts = [sub(left, BIT_OR)]
            for comparison, value in zip(operators, values, strict=True):
                parts += [COMPARISONS[type(comparison)], sub(value, BIT_OR)]
            return words(*parts), COMPARE
        case ast.IfExp(test, body, otherwise):
            return words(sub(body, OR), "if", sub(test, OR), "else", sub(otherwise, TERNARY)), TERNARY
        case ast.Lambda(parameters, body):
            return f"{words('lambda', _parameters(parameters))}:{sub(body, TERNARY)}", TERNARY
        case ast.NamedExpr(target, value):
            return f"{sub(target)}:={sub(value, TERNARY)}", NAMED
        case ast.Starred(value):
            return f"*{sub(value, BIT_OR)}", NAMED
        case ast.Tuple(items):
            if not items:
                return "()", ATOM
            return listed(items) + ("," if len(items) == 1 else ""), LOOSE
        case ast.List(items):
            return f"[{listed(items)}]", ATOM
        case ast.Set(items):
            return f"{{{listed(items)}}}", ATOM
        case ast.Dict(keys, values):
            pairs = (
                f"**{sub(value, BIT_OR)}" if key is None else f"{sub(key, TERNARY)}:{sub(value, TERNARY)}"
                for key, value in zip(keys, values, strict=True)
            )
            return f"{{{','.join(pairs)}}}", ATOM
        case ast.GeneratorExp(item, loops):
            return f"({words(sub(item, NAMED), _loops(loops, quotes))})", ATOM
        case ast.ListComp(item, loops):
            return f"[{words(sub(item, NAMED), _loops(loops, quotes))}]", ATOM
        case ast.SetComp(item, loops):
            return f"{{{words(sub(item, NAMED), _loops(loops, quotes))}}}", ATOM
        case ast.DictComp(key, value, loops):
            pair = f"{sub(key, TERNARY)}:{sub(value, TERNARY)}"
            return f"{{{words(pair, _loops(loops, quotes))}}}", ATOM
        case ast.JoinedStr():
            return _f_string(node, quotes), ATOM
        case ast.Yield(value):
            return ("yield" if value is None else words("yield", sub(value))), LOOSE
        case ast.YieldFrom(value):
            return words("yield from", sub(value, NAMED)), LOOSE
    raise ValueError(f"a self-contained script cannot hold {type(node).__name__}")


def _keyword(keyword: ast.keyword, quotes: Sequence[str] = QUOTES) -> str:
    if keyword.arg is None:
        return f"**{_expression(keyword.value, BIT_OR, quotes)}"
    return f"{keyword.arg}={_expression(keyword.value, TERNARY, quotes)}"


def _index(node: ast.expr, quotes: Sequence[str]) -> str:
    """What is between the brackets of a subscript."""
    if isinstance(node, ast.Slice):
        parts = (
            "" if part is None else _expression(part, TERNARY, quotes) for part in (node.lower, node.upper, node.step)
        )
        lower, upper, step = parts
        return f"{lower}:{upper}" + (f":{step}" if step else "")
    if isinstance(node, ast.Tuple) and node.elts:
        return ",".join(_index(item, quotes) for item in node.elts) + ("," if len(node.elts) == 1 else "")
    return _expression(node, NAMED, quotes)


def _loops(loops: Iterable[ast.comprehension], quotes: Sequence[str]) -> str:
    """The `for` and `if` parts of a comprehension."""
    parts = []
    for loop in loops:
        parts += ["for", _expression(loop.target, LOOSE, quotes), "in", _expression(loop.iter, OR, quotes)]
        for test in loop.ifs:
            parts += ["if", _expression(test, OR, quotes)]
    return words(*parts)


def _constant(value: object, quotes: Sequence[str]) -> str:
    if isinstance(value, float | complex):
        return repr(value).replace("inf", "1e309")
    if isinstance(value, bytes):
        text = repr(value)
        if text[1] not in quotes or ("\\" in text and tuple(quotes) != QUOTES):
            raise CannotQuoteError(text)
        return text
    if value is Ellipsis:
        return "..."
    return _string(value, quotes) if isinstance(value, str) else repr(value)


def _string(value: str, quotes: Sequence[str]) -> str:
    """A string in the quotes that need the fewest escapes."""
    texts = [quote + _escaped(value, quote) + quote for quote in quotes]
    # An expression in an f-string holds no backslash.
    usable = [text for text in texts if tuple(quotes) == QUOTES or "\\" not in text]
    if not usable:
        raise CannotQuoteError(value)
    return min(usable, key=len)


def _escaped(text: str, quote: str) -> str:
    """Text as it stands between these quotes."""
    written = []
    for character in text:
        if character in ESCAPES:
            written.append(ESCAPES[character])
        elif character == quote[0]:
            written.append(f"\\{character}")
        elif character < " " or character == "\x7f":
            written.append(f"\\x{ord(character):02x}")
        elif "\ud800" <= character <= "\udfff":
            written.append(f"\\u{ord(character):04x}")
        else:
            written.append(character)
    return "".join(written)


def _f_string(node: ast.JoinedStr, quotes: Sequence[str]) -> str:
    """An f-string in the first quotes that its expressions leave free."""
    for quote in quotes:
        # In long quotes an expression may have the short ones.
        inner = [other for other in quotes if other != quote and (len(quote) > 1 or other[0] != quote)]
        try:
            return f"f{quote}{_fields(node.values, quote, inner)}{quote}"
        except CannotQuoteError:
            continue
    raise CannotQuoteError(ast.dump(node))


def _fields(values: Iterable[ast.expr], quote: str, inner: Sequence[str]) -> str:
    """The text and the replacement fields of an f-string or of a format."""
    parts = []
    for value in values:
        if isinstance(value, ast.Constant):
            parts.append(_escaped(str(value.value), quote).replace("{", "{{").replace("}", "}}"))
            continue
        assert isinstance(value, ast.FormattedValue)
        text = _expression(value.value, OR, inner)
        conversion = "" if value.conversion < 0 else f"!{chr(value.conversion)}"
        form = ""
        if isinstance(value.format_spec, ast.JoinedStr):
            form = f":{_fields(value.format_spec.values, quote, inner)}"
        parts.append(f"{{{' ' if text.startswith('{') else ''}{text}{conversion}{form}}}")
    return "".join(parts)
