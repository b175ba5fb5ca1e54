"""docs/techniques.md and what cites it: no dead citation, no unknown field, no technique without a section. In any text
file: no dead link, no merge left open."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_origin

import pytest
from pydantic import BaseModel

from shared.spec import Spec
from tests import ROOT

PAGE = "docs/techniques.md"
SUFFIXES = (".py", ".toml", ".md", ".yaml", ".yml")
NOT_OURS = re.compile(r"runs|site|build|dist|data/datasets|(.*/)?(__pycache__|\.(?!ci$|github$)[^/]*|[^/]*\.egg-info)")
# Fields that are off by default and change how often a run does something, not what it computes.
CADENCE = {"training.val_every_steps", "training.checkpoint_every_steps"}

NUMBER = r"\d{1,2}(?:\.\d{1,2})?"
# Across line ends and the marks of comments; several numbers as "1.2, 1.8", "3 and 4" or "3 to 7".
CITATION = re.compile(rf"techniques\.md[\s#]+({NUMBER}(?:(?:,| and| to)[\s#]+{NUMBER}\b)*)")
# Earlier sources, which are not in the repository.
OLD_CITATION = re.compile(r"\b(?:FEATURES|DESIGN)(?:\.md\b|,?[\s#]+(?:sections?[\s#]+)?\d)")
HEADING = re.compile(rf"^#{{2,3}} ({NUMBER}) (.+)$", re.MULTILINE)


def our_files() -> Iterator[Path]:
    """Every file but what .gitignore names and other hidden ones."""
    for folder, inner, names in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        inner[:] = [name for name in sorted(inner) if not NOT_OURS.fullmatch((here / name).as_posix())]
        yield from (path for name in sorted(names) if (path := Path(folder, name)).is_file())


def text_files() -> Iterator[Path]:
    """Those of our files that are code, settings or prose."""
    return (path for path in our_files() if path.suffix in SUFFIXES or path.name == "Makefile")


def cited(text: str) -> set[str]:
    """The sections of the page that a text cites."""
    return {number for numbers in CITATION.findall(text) for number in re.findall(NUMBER, numbers)}


def headings() -> dict[str, str]:
    """The numbered headings of the page: title by number, in order."""
    return dict(HEADING.findall(page()))


def page() -> str:
    return (ROOT / PAGE).read_text(encoding="utf-8")


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """(name, is it a switch) of every field and section below a section of the spec.

    A switch chooses between forms or is off by default: a bool, a Literal, or a default of 0 or of nothing.
    """
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield f"{prefix}{name}", False
            yield from fields(annotation, f"{prefix}{name}.")
        else:
            chooses = annotation is bool or get_origin(annotation) is Literal
            yield f"{prefix}{name}", chooses or field.default in (0, "", ())


def named(text: str) -> set[str]:
    """The fields in the backticks of a text: whole, as `model.ngram.rows`, or as `.dim` in the section of the last."""
    top, found, section = "|".join(Spec.model_fields), set(), ""
    for name in re.findall(rf"`((?:{top})(?:\.[a-z_0-9]+)+|\.[a-z_0-9]+)(?: = [^`]*)?`", text):
        full = section + name if name.startswith(".") else name
        section = full.rpartition(".")[0]
        found.add(full)
    return found


def test_every_citation_names_a_section() -> None:
    known, dead, count = headings().keys(), [], 0
    for path in text_files():
        numbers = cited(path.read_text(encoding="utf-8"))
        count += len(numbers)
        dead += [f"{path.relative_to(ROOT)}: {number}" for number in sorted(numbers - known)]
    assert not dead, f"{PAGE} has no section for: {dead}"
    assert count > 100


def test_nothing_cites_what_is_not_in_the_repository() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]!r}"
        for path in text_files()
        for match in OLD_CITATION.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"cite {PAGE} instead: {found}"


def test_no_merge_is_left_open() -> None:
    """In any file: the marks with which git shows two sides of a conflict, at the start of a line."""
    marks = re.compile(rb"^(?:<{7}|>{7}|\|{7}) ", re.MULTILINE)
    assert marks.search(b"text\n" + b"<" * 7 + b" HEAD\n")
    files = list(our_files())
    assert {"Makefile", "uv.lock", ".ci/run", "tests/README.md"} <= {
        path.relative_to(ROOT).as_posix() for path in files
    }
    found = [path.relative_to(ROOT).as_posix() for path in files if marks.search(path.read_bytes())]
    assert not found, f"open merges in {found}"


def test_citations_are_found_in_every_form() -> None:
    assert cited(f"({PAGE} 4.2).") == {"4.2"}
    assert cited(f"{PAGE} 1.2, 1.8), {PAGE} 3 and 4; {PAGE}\n# 9.10, #1530") == {"1.2", "1.8", "3", "4", "9.10"}
    assert not cited(f"{PAGE}: what every technique computes")
    for old in ("FEATURES", "DESIGN"):
        for citation in (" 3", ".md", " sections 1.3", " section 5"):
            assert OLD_CITATION.search(f"({old}{citation})")
    assert not OLD_CITATION.search("FEATURES" + " of one tensor")


def test_the_page_refers_to_its_own_sections() -> None:
    referred = set(re.findall(r"\((\d{1,2}\.\d{1,2})\)", page()))
    assert referred and referred <= headings().keys()


@pytest.mark.parametrize("name", [PAGE, "docs/tour.md", "docs/extending.md", "README.md", "CONTRIBUTING.md"])
def test_the_files_on_a_page_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:shared|data|tests|records|mlx_train|cuda_train)/[^`N]+\.\w+)`", text))
    assert files and not [file for file in sorted(files) if not (ROOT / file).is_file()]


def anchor(title: str) -> str:
    """What a link to a heading names it, on GitHub and on the site."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_link_leads_somewhere() -> None:
    """In any page: to a file, and where it names one to a heading. The links of the site are these."""
    links = [(path, link) for path in text_files() if path.suffix == ".md" for link in links_of(path)]
    assert len(links) > 40
    for path, link in links:
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        assert target.is_file(), f"{path.relative_to(ROOT)}: no file {link}"
        titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M) if heading else []
        assert not heading or heading in map(anchor, titles), f"{path.relative_to(ROOT)}: no heading {link}"


def links_of(path: Path) -> list[str]:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link]


def test_the_pages_of_the_site_are_there() -> None:
    """The two that docs/pages.py makes too."""
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = set(re.findall(r"\S+\.md", site))
    assert named - {"docs/first-run.md", "records/index.md"} == {
        str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "tests/README.md"]
    }


def test_the_contents_are_the_headings() -> None:
    chapters: list[str] = []
    for number, title in headings().items():
        if "." in number:
            chapters[-1] += f"{',' if ': ' in chapters[-1] else ':'} {number} {title}"
        else:
            chapters.append(f"- [{number} {title}](#{anchor(f'{number} {title}')})")
    contents = " ".join(page().partition("\n## ")[0].split())
    assert contents.endswith(" ".join(chapters))


def test_every_field_on_the_page_exists() -> None:
    unknown = named(page()) - {name for name, _ in fields(Spec)}
    assert not unknown, f"{PAGE} names fields that the spec does not have: {sorted(unknown)}"


def test_every_check_has_a_row() -> None:
    """What a score or an audit says it checked is told in 1.4."""
    told = re.findall(r"^\| (`.*?) \|", page().partition("### 1.4 ")[2].partition("### 1.5 ")[0], re.M)
    named = {name for cell in told for name in re.findall(r"`(\w+)`", cell)}
    found: set[str] = set()
    for path in [*(ROOT / "shared/scoring").glob("*.py"), *(ROOT / "shared/training").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        if "Check(" in text:
            found |= set(re.findall(r'(?:\bCheck\(\s*|^NAME = )"(\w+)"', text, re.M))
    assert {"coverage", "later_text"} <= found
    assert not found - named, f"{PAGE} 1.4 has no row for these checks: {sorted(found - named)}"


def test_every_technique_has_a_section() -> None:
    """A new field that turns something on fails here until the page says what it does."""
    switches = {name for name, is_switch in fields(Spec) if is_switch}
    assert switches >= CADENCE
    missing = switches - CADENCE - named(page())
    assert not missing, f"{PAGE} has no section with these fields: {sorted(missing)}"


def test_fields_are_found_in_every_form() -> None:
    class Part(BaseModel):
        rate: float = 0.0
        width: int = 3

    class Whole(BaseModel):
        on: bool = True
        kind: Literal["a", "b"]
        layers: tuple[int, ...] = ()
        part: Part = Part()

    found = dict(fields(Whole))
    assert {name for name, is_switch in found.items() if is_switch} == {"on", "kind", "layers", "part.rate"}
    assert found.keys() - {"on", "kind", "layers", "part.rate"} == {"part", "part.width"}
    text = '`model.ngram.rows`, `.dim`, `data.train = "x"`, `shared/model/ngram.py`, `name`'
    assert named(text) == {"model.ngram.rows", "model.ngram.dim", "data.train"}
