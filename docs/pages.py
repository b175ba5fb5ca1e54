"""What is on the documentation site (mkdocs.yml): the pages of the repository at their own paths, so that a link means
the same in a checkout and there. Two pages are made: the notebook, and the list of the records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("*.md", "LICENSE", "docs/*.md", "docs/*.ipynb", "docs/pictures/*.*g", "records/*.md", "tests/**/README.md")
NOTEBOOK = "docs/first-run.ipynb"
ITEM = re.compile(r"(?:-|\d+\.) ")
CODE = re.compile("`[^`]*`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files and ours, in place of what mkdocs found in the folder of this file."""
    for file in list(files.src_uris.values()):
        if Path(file.abs_src_path or "/").is_relative_to(config.docs_dir):
            files.remove(file)
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    made = {"docs/first-run.md": notebook_page(), "records/index.md": records_page()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def notebook_page() -> str:
    """The notebook as Markdown: its text, its code, and below that what it printed."""
    return "\n\n".join(_cells(json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))))


def records_page() -> str:
    """A line for each record, the newest first, with its title."""
    paths = sorted((ROOT / "records").glob("*.md"), reverse=True)
    lines = [
        f"- [{path.read_text(encoding='utf-8').partition(chr(10))[0].lstrip('# ')}]({path.name})" for path in paths
    ]
    return "\n".join(["# Records", "", "What was measured: figures, machine, command.", "", *lines])


def _cells(notebook: dict) -> Iterator[str]:
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
        else:
            yield f"```python\n{source}\n```"
            printed = "".join("".join(output.get("text", "")) for output in cell["outputs"])
            if printed:
                yield f"```text\n{printed.rstrip()}\n```"
    yield f"This page is the notebook [{Path(NOTEBOOK).name}]({Path(NOTEBOOK).name})."


def on_page_markdown(markdown: str, **_: object) -> str:
    """What GitHub reads and mkdocs does not: a list right below a paragraph, `\\|` for a bar in the code of a table."""
    lines: list[str] = []
    fenced, before = False, ""
    for line in markdown.split("\n"):
        fenced ^= line.startswith("```")
        if not fenced and ITEM.match(line) and before and not before.startswith((" ", "#")) and not ITEM.match(before):
            lines.append("")
        if line.startswith("|"):
            line = CODE.sub(lambda code: code[0].replace("\\|", "|"), line)
        lines.append(line)
        before = line
    return "\n".join(lines)
