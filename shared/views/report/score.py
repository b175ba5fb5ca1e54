"""The sections of a report about a score: the figure, its audit, the size of what was scored."""

from __future__ import annotations

from shared.runs.metrics import number
from shared.runs.run_files import RunFiles
from shared.scoring.checks import limit_text
from shared.scoring.document import CheckPart, ScoreDocument
from shared.units import counted, format_bytes
from shared.views.report.bars import Bar, bar_chart, budget_chart
from shared.views.report.markup import Child, Element, element, facts, section, share_text, table


def score_section(score: ScoreDocument) -> Element:
    """The score with its interval, protocol, and general compressors on the same text."""
    interval, dataset = score.confidence, score.dataset
    bars = [
        Bar("this model", score.bpb, f"{score.bpb:.4f}", interval.low_bpb, interval.high_bpb, emphasised=True),
        *(
            Bar(name, result.bpb, f"{result.bpb:.4f} ({format_bytes(result.compressed_bytes)})")
            for name, result in sorted(score.compressors.items(), key=lambda item: item[1].bpb)
        ),
    ]
    whole = "the whole held-out text" if dataset.complete else "a fixed sample of the held-out documents"
    return element(
        "section",
        element("p", f"{score.bpb:.4f} ", element("small", "bits per byte, lower is better"), class_="score"),
        element("p", score.confidence.text),
        element("figure", bar_chart(bars, "bits per byte")),
        facts(
            [
                (
                    "text",
                    f"{dataset.name}: {counted(score.bytes, 'byte')} in {counted(score.documents, 'document')}, "
                    f"{whole}; sha256 {dataset.scored_sha256}",
                ),
                (
                    "protocol",
                    f"{counted(score.symbols, 'symbol')}, each scored once, {score.windows_text}, "
                    f"{score.weights} weights",
                ),
            ]
        ),
    )


def audit_section(score: ScoreDocument) -> Element:
    """Every check with what it measured."""
    rows = [(check.name, _verdict(check), _measured(check), check.detail) for check in score.audit.checks]
    return section("Audit", table(("check", "verdict", "measured", "what was found"), rows, class_="checks"))


def _measured(check: CheckPart) -> str:
    """`2.19, at least 1`."""
    if check.measured is None:
        return f"not a number, limit {check.limit:.3g}"
    return f"{check.measured:.3g}, {limit_text(check.passed, check.measured, check.limit)}"


def _verdict(check: CheckPart) -> Element:
    if not check.passed:
        return element("strong", "failed", class_="bad")
    if check.warning:
        return element("strong", "warning", class_="warn")
    return element("strong", "passed", class_="good")


def size_section(run: RunFiles, score: ScoreDocument) -> Element:
    """Artifact and code against the budget, and what packing cost."""
    artifact = score.artifact_bytes or 0
    total, limit = score.total_bytes, score.limit_bytes
    parts = [("artifact", artifact), ("code", score.code_bytes)]
    left = limit - total
    verdict = (
        element("strong", f"{left:,} bytes left", class_="good")
        if left >= 0
        else element("strong", f"{-left:,} bytes over the budget", class_="bad")
    )
    names = [(f"{name}: {size:,} bytes", float(size)) for name, size in parts]
    keys: list[Child] = [_key("first", "artifact"), _key("second", "code"), "together", "budget"]
    sizes = (artifact, score.code_bytes, total, limit)
    rows = [(key, f"{size:,}", share_text(size, limit)) for key, size in zip(keys, sizes, strict=True)]
    found = section(
        "Size",
        element("figure", budget_chart(names, limit, f"{total:,} of {limit:,} bytes")),
        table(("", "bytes", "of the budget"), rows, numeric=(1, 2)),
        element("p", verdict),
    )
    packing = _packing(run)
    if packing is not None:
        found.append(packing)
    return found


def _key(style: str, name: str) -> Element:
    """A name with the colour it has in the chart."""
    return element("span", element("span", class_=f"key {style}"), name)


def _packing(run: RunFiles) -> Element | None:
    """The cost of quantisation that the finished run logged."""
    noted = run.ending.get("packing")
    if not isinstance(noted, dict):
        return None
    names = ("unpacked_bpb", "packed_bpb", "difference_bpb", "limit_bpb")
    before, after, cost, limit = (number(noted, name) for name in names)
    if before is None or after is None or cost is None or limit is None:
        return None
    verdict = element("strong", f"{cost:+.4f}", class_="good" if cost <= limit else "bad")
    return element(
        "p",
        f"Packing took the validation sample from {before:.4f} to {after:.4f} bits per byte: ",
        verdict,
        f", at most {limit:+g} is allowed.",
    )
