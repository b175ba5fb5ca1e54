"""What goes into a script: all that it reaches, nothing else, and in it nothing that only readers need."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Any

import pytest

from shared.script import house
from shared.script.emit import emit
from shared.script.reach import Reach
from shared.script.rename import rename_globals, rename_locals

FILES = {
    "shared/__init__.py": '"""A package."""\nfrom shared.tools import used, unused\n',
    "shared/main.py": '''
        """A program."""
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, cast
        import json
        import numpy
        from pydantic import BaseModel, Field, TypeAdapter
        from shared import used
        from shared import tools
        if TYPE_CHECKING:
            from shared.far import Far

        LIMIT, UNUSED_LIMIT = 3, 4
        OTHER = 5

        class View(Protocol):
            def show(self) -> None: ...

        @dataclass
        class Point:
            """Validated nowhere."""
            x: int = 0
            y: int = 0
            kind: ClassVar[str] = "point"
            def moved(self, by: int) -> Point:
                return Point(self.x + by, self.y)
            def __add__(self, other: Point) -> Point:
                return self
            def idle(self) -> None: ...
            __radd__ = _plus = lambda self, other: self._named(other)
            def _named(self, other): return self

        @dataclass
        class Report:
            point: Inner

        @dataclass
        class Inner:
            value: int

        class Pair(NamedTuple):
            left: int
            right: int = 0

        READ = TypeAdapter(Report)

        class Model(BaseModel):
            size: int = Field(1, description="how large")
            def helper(self): ...

        class Listener(json.JSONEncoder):
            def default(self, o): return 1

        def main(view: View, words: list[str]) -> int:
            """Run."""
            assert words, "a reason"
            point: Point = cast(Point, Point().moved(LIMIT))
            getattr(point, "idle")
            from shared import late
            late.called(point, READ, Model, Listener, Pair(1))
            return tools.other(used(numpy)) or OTHER
    ''',
    "shared/tools.py": """
        from shared.far import far
        def used(x): return x
        def unused(x): return far(x)
        def other(x): return x
        EFFECT = []
        EFFECT.append(1)
        """,
    "shared/far.py": "class Far: pass\ndef far(x): return x\n",
    "shared/late.py": "from shared.heavy import weight\ndef called(*words): return weight\n",
    "shared/heavy.py": "weight = 1\n",
}


@pytest.fixture
def reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reach:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.setattr(house, "ROOT", tmp_path)
    return Reach([("shared.main", "main")], {"shared.heavy": "weight = 2\nbulk = weight"})


def text_of(reach: Reach, name: str) -> str:
    return emit(ast.Module(reach.body(reach.modules[name]), []))


def test_modules(reach: Reach) -> None:
    assert set(reach.modules) == {"shared", "shared.main", "shared.tools", "shared.late", "shared.heavy"}
    assert text_of(reach, "shared.heavy") == "weight=2\n"
    assert text_of(reach, "shared") == "from shared.tools import used\n"
    assert reach.packages() == {"numpy", "pydantic"}


def test_statements(reach: Reach) -> None:
    tools = "def used(x):return x\ndef other(x):return x\nEFFECT=[];EFFECT.append(1)\n"
    assert text_of(reach, "shared.tools") == tools
    main = text_of(reach, "shared.main")
    for kept in (
        "LIMIT,UNUSED_LIMIT=3,4",
        "OTHER=5",
        "def moved",
        "def __add__",
        "def idle",
        "def _named",
        "def default",
    ):
        assert kept in main, kept
    for gone in ("View", "Far", "TYPE_CHECKING", "cast", "assert", "def helper", '"""', "description", "words:", "->"):
        assert gone not in main, gone


def test_annotations_stay_where_they_are_read(reach: Reach) -> None:
    main = text_of(reach, "shared.main")
    assert 'class Point:\n x:0=0;y:0=0;kind:ClassVar[str]="point"\n' in main
    assert "class Report:point:Inner\n" in main and "class Inner:value:int\n" in main
    assert "class Pair(NamedTuple):left:None;right:None=0\n" in main
    assert "class Model(BaseModel):size:int=Field(1)\n" in main
    assert "point=Point().moved(LIMIT)" in main


def test_an_import_of_a_whole_module_of_ours_cannot_be_followed(reach: Reach, tmp_path: Path) -> None:
    (tmp_path / "shared/bad.py").write_text("import shared.far\ndef main(): return shared.far\n")
    with pytest.raises(ValueError, match=r"import shared\.far"):
        Reach([("shared.bad", "main")])


def test_of_idle_functions_nothing_is_left_but_the_name(reach: Reach) -> None:
    idle = Reach([("shared.main", "main")], idle={"shared.main:main", "shared.main:Point.moved"})
    assert text_of(idle, "shared.main").endswith("def main(*_,**__):pass\n")
    assert len(idle.modules) < len(reach.modules)
    for unknown in ("shared.main:nothing", "shared.main:Nobody.main"):
        with pytest.raises(ValueError, match=f"no function {unknown}"):
            Reach([("shared.main", "main")], idle={unknown})


def test_parts_of_an_idle_operator_are_left_out(tmp_path: Path, reach: Reach) -> None:
    text = """
        import framework
        @framework.operator("forward")
        def forward(x): return x
        @forward.register_fake
        def _(x): return x
        @framework.operator("backward")
        def backward(x): return forward(x)
        @backward.register_fake
        def _(x): return 2 * x
        def main():
            _, y = 0, backward
    """
    (tmp_path / "shared/operators.py").write_text(textwrap.dedent(text))
    whole, scores = (
        text_of(Reach([("shared.operators", "main")], idle=idle), "shared.operators")
        for idle in (set(), {"shared.operators:backward"})
    )
    assert whole.count("register_fake") == 2 and scores.count("register_fake") == 1
    assert "def backward(*_,**__):pass" in scores and "2*x" not in scores


def renamed(source: str, *, fixed: tuple[str, ...] = (), parameters: bool = True) -> str:
    tree = ast.parse(textwrap.dedent(source))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    rename_locals(tree.body, names | {"glob"}, fixed, parameters=parameters)
    return emit(tree)


def test_locals_get_short_names() -> None:
    source = """
        def outer(first, second, /, *rest, key=1):
            total = first + glob
            def inner(other):
                nonlocal total
                total = total + other + second
                return [item for item in rest if item]
            try:
                return inner(total), key
            except ValueError as error:
                raise KeyError from error
    """
    text = renamed(source, fixed=("key",))
    assert text == (
        "def outer(c,d,/,*e,key=1):\n a=c+glob\n def f(g):nonlocal a;a=a+g+d;return[b for b in e if b]\n"
        " try:return f(a),key\n except ValueError as h:raise KeyError from h\n"
    )
    space: dict[str, object] = {"glob": 10}
    exec(text, space)
    assert space["outer"](1, 2, 0, 3, key=7) == ([3], 7)  # type: ignore[operator]
    assert renamed("def f(name, other): return name", parameters=False) == "def f(name,other):return name\n"


def test_a_name_that_means_something_else_nearby_is_left() -> None:
    source = """
        def f(glob_, list_):
            class Local:
                field = list_
            import os.path
            a = lambda glob: glob + os.sep
            return Local.field, a
        @kernel.jit
        def g(pointer, size: constant):
            value = pointer + size
            return value
    """
    text = renamed(source)
    assert "class Local:field=list_" in text and "import os.path" in text and "lambda glob:glob+os.sep" in text
    assert "def g(pointer,size:constant):a=pointer+size;return a" in text


def test_what_a_module_has_for_itself_gets_short_names() -> None:
    source = """
        from other import imported
        LIMIT, _TABLE = 3, {"kept": 1}
        shared_word = _called = LIMIT
        class Shown:
            size: int = LIMIT
            def _helper(self): return _helper(self, imported)
        def _helper(one, two, A=1): return one, two, A, _TABLE["kept"]
        def asked(words):
            kept = _helper(words, shared_word)
            def inner(): return kept
            return inner(), Shown().size
        def kept(): return _called
        def _used_once(): return asked(kept())
    """
    tree = ast.parse(textwrap.dedent(source))
    names = {"imported", "LIMIT", "_TABLE", "shared_word", "_called", "Shown", "_helper", "asked", "kept", "_used_once"}
    after = rename_globals(tree.body, names, {"asked", "shared_word"})
    text = emit(tree)
    # Each of these is bound somewhere else too, or known to others.
    assert {"imported", "Shown", "_helper", "asked", "kept", "shared_word"} < after
    assert not {"LIMIT", "_TABLE", "_called", "_used_once", "A"} & after and len(after) == len(names)
    space: dict[str, Any] = {}
    exec(text.replace("from other import imported", "imported=9"), space)
    assert space["asked"](5) == ((5, 3, 1, 1), 3) and space["kept"]() == 3
