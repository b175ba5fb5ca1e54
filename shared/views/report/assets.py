"""The script and style of the charts: uPlot 1.6.32 (MIT, uplot.LICENSE) as it is published, and what draws with it.

uPlot adds 53 kB to a page. Plotly's bundle has 4.8 MB and Bokeh's 1.3 MB; that of Altair, Vega, comes in a package of
33 MB and compiles text into code, which the policy of the page forbids.
"""

from __future__ import annotations

from importlib.resources import files


def scripts() -> list[str]:
    """The scripts of a page with curves, in order."""
    return [_read("uplot.js"), _read("charts.js")]


def chart_style() -> str:
    """The style sheet of the library."""
    return _read("uplot.css")


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
