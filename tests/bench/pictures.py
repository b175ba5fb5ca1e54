"""The pictures in docs/pictures: the console and the report of a trained run, as they are now.

    python -m tests.bench.pictures RUN

The console is what `bytetwin watch RUN --once` prints, the report the upper part of RUN/report.html, which
`bytetwin report RUN` writes. It needs a Chromium.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import tempfile
from pathlib import Path

from rich.console import Console

from shared.runs.target import RUNS, find_runs
from shared.views.watched import read_watched
from tests import ROOT
from tests.browser import find_browser, open_browser

FOLDER = ROOT / "docs" / "pictures"
CONSOLE_COLUMNS = 110
REPORT_WIDTH, REPORT_HEIGHT = 1100, 1000
# More would make a page that shows them slow.
MOST_BYTES = 150_000


def console_picture(run: Path) -> bytes:
    """The console of a run as SVG, drawn with a font of the reader's machine."""
    (found,) = find_runs([str(run)], Path(RUNS))
    out = Console(record=True, width=CONSOLE_COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    out.print(read_watched(found).dashboard)
    svg = out.export_svg(title=f"bytetwin watch {run}", unique_id="console")
    # rich names a font on another server.
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.S).encode()


def report_picture(page: Path) -> bytes:
    """The upper part of a report as PNG."""
    browser = find_browser()
    if browser is None:
        raise SystemExit("no Chromium is installed")
    clip = {"x": 0, "y": 0, "width": REPORT_WIDTH, "height": REPORT_HEIGHT, "scale": 1}
    with tempfile.TemporaryDirectory() as profile, open_browser(browser, Path(profile)) as window:
        window.open(page, REPORT_WIDTH)
        found = window.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    return base64.b64decode(found["data"])


def main() -> None:
    """Draw both pictures of the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a trained run with its report.html")
    run = parser.parse_args().run
    FOLDER.mkdir(exist_ok=True)
    for name, picture in (("console.svg", console_picture(run)), ("report.png", report_picture(run / "report.html"))):
        assert len(picture) <= MOST_BYTES, f"{name}: {len(picture)} bytes"
        (FOLDER / name).write_bytes(picture)
        print(FOLDER / name, len(picture))


if __name__ == "__main__":
    main()
