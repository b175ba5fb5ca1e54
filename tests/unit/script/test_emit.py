"""Emitted source means what the tree meant, and is short."""

from __future__ import annotations

import ast

import pytest

from shared.script.emit import emit
from tests import ROOT

SHORT = [
    ("x = a if b else (c if d else e)\n", "x=a if b else c if d else e\n"),
    ("x = (a if b else c) if d else e\n", "x=(a if b else c)if d else e\n"),
    ("x = (yield)\n", "x=yield\n"),
    ("x = -(a ** -b) ** c\n", "x=-(a**-b)**c\n"),
    ("x = (a - b) - (c - d)\n", "x=a-b-(c-d)\n"),
    ("x = not (a in b), a not in (b or c)\n", "x=not a in b,a not in(b or c)\n"),
    ("x = (a < b) < c\n", "x=(a<b)<c\n"),
    ("x = lambda a, /, b=1, *c, d, e=2, **f: (a, b)\n", "x=lambda a,/,b=1,*c,d,e=2,**f:(a,b)\n"),
    ("x = (1).real + 1.0.real\n", "x=(1).real+1.0.real\n"),
    ("x[1:, ::2, (a := b)] = 1,\n", "x[1:,::2,a:=b]=1,\n"),
    ("f(x for x in y if (a if b else c))\n", "f(x for x in y if(a if b else c))\n"),
    (
        """x = f"{a!r:>{w}} {{}} {d['k']} {'q'}\\n" f'{ {1: 2} }'\n""",
        "x=f\"{a!r:>{w}} {{}} {d['k']} {'q'}\\n{ {1:2}}\"\n",
    ),
    ("""x = 'a"b', "a'b", b'\\x00', 1e400\n""", "x='a\"b',\"a'b\",b'\\x00',1e309\n"),
    (
        "if a:\n    pass\nelif b:\n    c; d\nelse:\n    if e:\n        f\n    g\n",
        "if a:pass\nelif b:c;d\nelse:\n if e:f\n g\n",
    ),
    (
        "match x:\n    case {'a': [1, *b], **c} | P(d, e=None) as f if g:\n        pass\n",
        'match x:\n case(({"a":[1,*b],**c}|P(d,e=None))as f)if g:pass\n',
    ),
]


@pytest.mark.parametrize(("source", "expected"), SHORT)
def test_short_forms(source: str, expected: str) -> None:
    if "yield" in source:
        source, expected = f"def f():\n {source}", f"def f():{expected}"
    text = emit(ast.parse(source))
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(source))
    assert text == expected


@pytest.mark.slow
def test_every_file_of_the_house_means_the_same() -> None:
    """Every file with a pattern in it, and every fifth other."""
    for index, path in enumerate(sorted((ROOT / "shared").rglob("*.py"))):
        source = path.read_text(encoding="utf-8")
        if index % 5 == 0 or "case " in source:
            tree = ast.parse(source)
            text = emit(tree)
            assert ast.dump(ast.parse(text)) == ast.dump(tree), path


def test_what_no_quotes_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="AsyncFunctionDef"):
        emit(ast.parse("async def f(): pass"))
    # Python 3.11 has no backslash in an expression of an f-string.
    backslash = ast.JoinedStr([ast.FormattedValue(ast.Constant("a\nb"), -1)])
    with pytest.raises(ValueError):
        emit(ast.Module([ast.Expr(backslash)], []))
