"""HTML and SVG elements, escaped by construction: text only ever enters a page as the text of a node."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from xml.etree import ElementTree

Element = ElementTree.Element
Child = Element | str

# Control characters, lone surrogates and non-characters are no text in HTML; characters that turn the
# direction of writing could make a line read as something else.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
# The page can load nothing, and run nothing but the scripts with these hashes, whatever got into it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# What could end a script element or begin a comment in it.
_IN_JSON = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"}


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """An element of texts and elements. `class_` stands for class and `stroke_width` for stroke-width."""
    node = Element(tag, {name.rstrip("_").replace("_", "-"): clean(str(value)) for name, value in attributes.items()})
    for child in children:
        if not isinstance(child, str):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or "") + clean(child)
        else:
            node.text = (node.text or "") + clean(child)
    return node


def clean(text: str) -> str:
    """The text with every character that does not belong in a page shown as U+FFFD."""
    return _UNFIT.sub("\ufffd", text)


def table(
    header: Iterable[str], rows: Iterable[Iterable[Child]], numeric: Iterable[int] = (), class_: str = ""
) -> Element:
    """A table whose first column names its rows, in a box that scrolls where the page is too narrow; columns in
    `numeric` are aligned as figures."""
    right = set(numeric)
    body = element("tbody")
    for row in rows:
        cells = [_cell(index, content, right) for index, content in enumerate(row)]
        body.append(_line(element("tr", *cells)))
    names = list(header)
    parts = [body]
    if any(names):
        head = [
            element("th", name, scope="col", **_alignment(index, right)) if name else element("td")
            for index, name in enumerate(names)
        ]
        parts.insert(0, _line(element("thead", element("tr", *head))))
    return element("div", element("table", *parts, **({"class_": class_} if class_ else {})), class_="wide")


def facts(rows: Iterable[tuple[str, Child]]) -> Element:
    """A table of names and values."""
    return table((), rows)


def share_text(part: float, whole: float) -> str:
    """`12.3%`; nothing where there is no whole."""
    return f"{part / whole:.1%}" if whole else ""


def section(title: str, *children: Child) -> Element:
    """A titled section."""
    return element("section", element("h2", title), *children)


def details(summary: Child, *children: Child) -> Element:
    """A part that opens when asked for."""
    return element("details", element("summary", summary), *children)


def data_block(name: str, values: Any) -> Element:
    """Values for a script, as JSON in an element that is not run and that no text in it can end."""
    content = json.dumps(values, allow_nan=False, separators=(",", ":")).translate(_IN_JSON)
    return element("script", content, type="application/json", id=name)


def page(title: str, style: str, body: Iterable[Element], scripts: Sequence[str] = ()) -> bytes:
    """A whole HTML document in UTF-8. `scripts` are run after the body, and no others."""
    hashes = "".join(f" 'sha256-{_hash(script)}'" for script in scripts)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY + (hashes and f"; script-src{hashes}")),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    main = element("main", *(_line(part) for part in body))
    end = [element("script", each) for each in scripts]
    root = element("html", _line(head), element("body", main, *end), lang="en")
    return b"<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html").encode() + b"\n"


def _hash(script: str) -> str:
    assert clean(script) == script and "</" not in script, "not as it will stand in the page"
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _cell(index: int, content: Child, right: set[int]) -> Element:
    if index == 0:
        return element("th", content, scope="row")
    return element("td", content, **_alignment(index, right))


def _alignment(index: int, right: set[int]) -> dict[str, str]:
    return {"class_": "figure"} if index in right else {}


def _line(node: Element) -> Element:
    """The element at the end of a line of source."""
    node.tail = "\n"
    return node
