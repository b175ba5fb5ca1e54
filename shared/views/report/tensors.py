"""The section of a report that says where the bytes of the artifact sit, as `bytetwin inspect` does."""

from __future__ import annotations

from collections.abc import Sequence

from shared.artifact import read_artifact
from shared.artifact.inspection import COST_HEADING, Costs, TensorFacts, histogram_text, inspect_artifact
from shared.model import parameter_counts
from shared.runs.run_files import RunFiles
from shared.scoring.document import ScoreDocument
from shared.spec import Spec
from shared.views.report.bars import Bar, bar_chart
from shared.views.report.markup import Child, Element, details, element, section, share_text, table

GROUPS = {
    "matrix": "matrices of attention and MLP",
    "embedding": "embeddings",
    "head": "output heads",
    "scalar": "gains, mixes and start vectors",
    "adapter": "low-rank adapters",
}

HEADINGS = ("tensor", "stored", "weights", "bytes", "bits each", "coded", "entropy", "Gaussian")
MEANING = (
    "bits each: of the file, per weight. coded: what a code takes in the file. entropy: of the codes, order 0. "
    "Gaussian: what the codes of Gaussian weights would have. codes: how often each occurs, 0 in the middle."
)


def parameter_section(spec: Spec) -> Element:
    """Parameters by group, without the groups that the model does not have."""
    counts = parameter_counts(spec)
    total = counts["total"]
    rows = [
        (f"{name}: {meaning}", f"{counts[name]:,}", share_text(counts[name], total))
        for name, meaning in GROUPS.items()
        if counts.get(name)
    ]
    rows.append(("total", f"{total:,}", share_text(total, total)))
    return section("Parameters", table(("group", "parameters", "share"), rows, numeric=(1, 2)))


def tensor_section(run: RunFiles, score: ScoreDocument | None, costs: Costs | None = None) -> Element | None:
    """The table of the tensors in the artifact that was scored; None where another or no artifact lies there. Raises
    ArtifactError if it is damaged."""
    if not run.directory.artifact_path.is_file():
        return None
    artifact = read_artifact(run.directory.artifact_path)
    if score is not None and not score.is_of(artifact.info):
        return None
    facts = inspect_artifact(artifact)
    coded = [each for each in facts if each.code_bits is not None]
    plain = [each for each in facts if each.code_bits is None]
    weights, size = sum(each.weights for each in plain), sum(each.stored_bytes for each in plain)
    headings = (*HEADINGS, *((COST_HEADING,) if costs else ()), "codes")
    rows = [_row(each, costs) for each in coded]
    rows.append((f"{len(plain)} other tensors", "float32", f"{weights:,}", f"{size:,.0f}"))
    rows.append(("header", "", "", f"{artifact.info.header_bytes:,}"))
    rows = [(*row, *[""] * (len(headings) - len(row))) for row in rows]
    meaning = MEANING if costs is None else f"{MEANING} {costs}."
    return section(
        "Where the bytes are",
        bar_chart(_bars(facts), "bytes by part of the model"),
        details(
            "every tensor",
            element("p", meaning, class_="quiet"),
            table(headings, rows, numeric=range(2, len(headings) - 1)),
        ),
    )


def _bars(facts: Sequence[TensorFacts]) -> list[Bar]:
    """Bytes by part of the model: the first word of a name that is not the number of a layer."""
    sizes: dict[str, float] = {}
    for each in facts:
        words = [word for word in each.name.split(".") if word != "layers" and not word.isdigit()]
        sizes[words[0]] = sizes.get(words[0], 0.0) + each.stored_bytes
    total = sum(sizes.values())
    return [
        Bar(name, size, f"{size:,.0f} bytes, {share_text(size, total)}")
        for name, size in sorted(sizes.items(), key=lambda item: -item[1])
    ]


def _row(facts: TensorFacts, costs: Costs | None) -> tuple[Child, ...]:
    figures = (facts.bits_per_weight, facts.code_bits, facts.entropy_bits, facts.gaussian_bits)
    return (
        facts.name.removesuffix(".weight"),
        f"{facts.method} {facts.bits}",
        f"{facts.weights:,}",
        f"{facts.stored_bytes:,.0f}",
        *("" if figure is None else f"{figure:.3f}" for figure in figures),
        *(() if costs is None else (costs.of(facts.name),)),
        element("code", histogram_text(facts.histogram)),
    )
