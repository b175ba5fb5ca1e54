"""What the model itself adds to a report: where its loss sits, documents coloured by it, and a text that it wrote."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from shared.scoring.loss_profile import Excerpt, LossProfile, Part
from shared.views.report.bars import Bar, bar_chart, column_chart
from shared.views.report.markup import Element, element, section, table

# Nats per symbol at which the next colour begins.
LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
# Positions with less than this share of the symbols of others say what a window or two did.
FEW_FRAC = 0.25


@dataclass(frozen=True)
class ModelView:
    """What was measured of a model for a report: `weights` names which, on `engine`; `sample` is text that it wrote,
    as `sampled` says."""

    weights: str
    engine: str
    profile: LossProfile
    sample: str
    sampled: str


def model_sections(view: ModelView) -> list[Element]:
    """The sections of a model: sample, loss by position, documents."""
    profile = view.profile
    total = profile.total
    source = (
        f"Measured of the {view.weights} weights with {view.engine} on {total.symbols:,} symbols "
        f"({total.bytes:,} bytes) from all over {profile.text}: {_bpb(total)} bits per byte."
    )
    return [
        section(
            "Generated text",
            element("p", view.sampled, class_="quiet"),
            element("pre", view.sample or "(nothing: the model began another document)"),
        ),
        section("Where the loss is", element("p", source, class_="quiet"), *_places(profile)),
        section(
            "Worst and best documents",
            element("p", "The beginning of each, coloured by nats per symbol: ", *_key(), class_="quiet"),
            *itertools.chain.from_iterable(
                _excerpt(kind, each)
                for kind, excerpts in (("worst", profile.worst), ("best", profile.best))
                for each in excerpts
            ),
        ),
    ]


def characters(pieces: Iterable[tuple[bytes, float]]) -> Iterator[tuple[str, float]]:
    """(text, mean nats of its symbols) of pieces that are whole characters; what is not UTF-8 becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    nats: list[float] = []
    for content, value in pieces:
        nats.append(value)
        if text := decoder.decode(content):
            yield text, sum(nats) / len(nats)
            nats = []
    if text := decoder.decode(b"", final=True):
        yield text, sum(nats) / len(nats)


def level(nats: float) -> int:
    """The index of the colour for nats per symbol."""
    return sum(nats >= edge for edge in LEVELS)


def _places(profile: LossProfile) -> list[Element]:
    shares = ", ".join(f"the costliest {frac:.0%} of symbols carry {share:.1%}" for frac, share in profile.top)
    found = [element("p", f"Concentration: {shares} of the loss.")]
    total = profile.total
    rows = [
        (
            part.name,
            f"{part.symbols / total.symbols:.1%}",
            f"{part.nats / total.nats:.1%}" if total.nats else "",
            _bpb(part),
            f"{part.nats / part.symbols:.3f}",
        )
        for part in sorted(profile.classes, key=lambda part: -part.nats)
    ]
    headings = ("class of symbol", "of symbols", "of the loss", "bits per byte", "nats each")
    found.append(table(headings, rows, numeric=range(1, 5)))
    if len(profile.patch) > 1:
        found.append(element("p", "Bits per byte by position in the patch", class_="name"))
        found.append(bar_chart([_bar(part, f"{part.name}.") for part in profile.patch], "bits per byte by position"))
    often = often_counted(profile.window)
    first, last = often[0], often[-1]
    ends = f"from {_bpb(first)} at positions {first.name} to {_bpb(last)} at {last.name}"
    if len(often) < len(profile.window):
        ends += "; others are left out, because few windows count them: they are read as context"
    found.append(element("p", f"Bits per byte by position in the window, {ends}", class_="name"))
    found.append(column_chart([_bar(part, part.name) for part in often], "bits per byte by position"))
    return found


def often_counted(parts: Sequence[Part]) -> list[Part]:
    """The parts with a fair share of the symbols. Of windows that overlap only the first one counts its beginning."""
    most = max(part.symbols for part in parts)
    return [part for part in parts if FEW_FRAC * most <= part.symbols]


def _bar(part: Part, name: str) -> Bar:
    return Bar(name, part.bpb or 0.0, _bpb(part))


def _bpb(part: Part) -> str:
    return "" if part.bpb is None else f"{part.bpb:.4f}"


def _key() -> list[Element]:
    """The colours with the nats that they stand for."""
    edges = [0.0, *LEVELS]
    names = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)] + [f"{edges[-1]:g} and more"]
    keys = []
    for index, name in enumerate(names):
        key = element("i", name, class_=f"n{index}")
        key.tail = " "
        keys.append(key)
    return keys


def _excerpt(kind: str, excerpt: Excerpt) -> list[Element]:
    title = f"{kind}: document {excerpt.index + 1:,}, {excerpt.bpb:.4f} bits per byte of {excerpt.num_bytes:,} bytes"
    return [element("p", title, class_="name"), element("pre", *_coloured(excerpt.pieces), class_="text")]


def _coloured(pieces: Sequence[tuple[bytes, float]]) -> Iterator[Element]:
    """One element for each run of characters of one colour."""
    shown = ((text, level(nats)) for text, nats in characters(pieces))
    for index, group in itertools.groupby(shown, key=lambda item: item[1]):
        yield element("i", "".join(text for text, _ in group), class_=f"n{index}")
