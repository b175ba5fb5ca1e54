"""Expressions of a self-contained script, in brackets only where they bind more loosely than what is around them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

from shared.script.strings import QUOTES, CannotQuoteError, constant, escaped

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


def parameter_list(arguments: ast.arguments) -> str:
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
    annotation = "" if argument.annotation is None else f":{expression(argument.annotation, TERNARY)}"
    return f"{argument.arg}{annotation}" + ("" if default is None else f"={expression(default, TERNARY)}")


def expression(node: ast.expr, least: int = LOOSE, quotes: Sequence[str] = QUOTES) -> str:
    """The text of an expression, in brackets if it binds more loosely than `least`. Strings in it have one of `quotes`,
    which an f-string around it does not have."""
    text, binds = _bound(node, quotes)
    return text if binds >= least else f"({text})"


def _bound(node: ast.expr, quotes: Sequence[str]) -> tuple[str, int]:
    """The text of an expression and how tightly it binds."""

    def sub(inner: ast.expr, least: int = LOOSE) -> str:
        return expression(inner, least, quotes)

    def listed(items: Iterable[ast.expr]) -> str:
        return ",".join(sub(item, NAMED) for item in items)

    match node:
        case ast.Name(name):
            return name, ATOM
        case ast.Constant(value):
            return constant(value, quotes), ATOM
        case ast.Attribute(value, name):
            number = isinstance(value, ast.Constant) and isinstance(value.value, int)
            return (f"({sub(value)}).{name}" if number else f"{sub(value, ATOM)}.{name}"), ATOM
        case ast.Call(function, arguments, keywords):
            if len(arguments) == 1 and not keywords and isinstance(arguments[0], ast.GeneratorExp):
                return f"{sub(function, ATOM)}{sub(arguments[0])}", ATOM
            named = [named_argument(keyword, quotes) for keyword in keywords]
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
            return f"{words('lambda', parameter_list(parameters))}:{sub(body, TERNARY)}", TERNARY
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


def named_argument(keyword: ast.keyword, quotes: Sequence[str] = QUOTES) -> str:
    """The text of `name=value` or `**value` in a call or behind the name of a class."""
    if keyword.arg is None:
        return f"**{expression(keyword.value, BIT_OR, quotes)}"
    return f"{keyword.arg}={expression(keyword.value, TERNARY, quotes)}"


def _index(node: ast.expr, quotes: Sequence[str]) -> str:
    """What is between the brackets of a subscript."""
    if isinstance(node, ast.Slice):
        parts = (
            "" if part is None else expression(part, TERNARY, quotes) for part in (node.lower, node.upper, node.step)
        )
        lower, upper, step = parts
        return f"{lower}:{upper}" + (f":{step}" if step else "")
    if isinstance(node, ast.Tuple) and node.elts:
        return ",".join(_index(item, quotes) for item in node.elts) + ("," if len(node.elts) == 1 else "")
    return expression(node, NAMED, quotes)


def _loops(loops: Iterable[ast.comprehension], quotes: Sequence[str]) -> str:
    """The `for` and `if` parts of a comprehension."""
    parts = []
    for loop in loops:
        parts += ["for", expression(loop.target, LOOSE, quotes), "in", expression(loop.iter, OR, quotes)]
        for test in loop.ifs:
            parts += ["if", expression(test, OR, quotes)]
    return words(*parts)


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
            parts.append(escaped(str(value.value), quote).replace("{", "{{").replace("}", "}}"))
            continue
        assert isinstance(value, ast.FormattedValue)
        text = expression(value.value, OR, inner)
        conversion = "" if value.conversion < 0 else f"!{chr(value.conversion)}"
        form = ""
        if isinstance(value.format_spec, ast.JoinedStr):
            form = f":{_fields(value.format_spec.values, quote, inner)}"
        parts.append(f"{{{' ' if text.startswith('{') else ''}{text}{conversion}{form}}}")
    return "".join(parts)
