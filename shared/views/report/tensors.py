"""The section of a report that says where the bytes of the artifact sit, as `bytetwin inspect` does."""

from __future__ import annotations

from shared.artifact import read_artifact
from shared.artifact.inspection import TensorFacts, histogram_text, inspect_artifact
from shared.runs.finished_run import FinishedRun
from shared.views.report.markup import Child, Element, element, section, table

HEADINGS = ("tensor", "stored", "weights", "bytes", "bits each", "coded", "entropy", "Gaussian", "codes")
MEANING = (
    "bits each: of the file, per weight. coded: what a code takes in the file. entropy: of the codes, order 0. "
    "Gaussian: what the codes of Gaussian weights would have. codes: how often each occurs, 0 in the middle."
)


def tensor_section(run: FinishedRun) -> Element | None:
    """The table of the tensors in the artifact that was scored; None where another or no artifact lies there. Raises
    ArtifactError if it is damaged."""
    if not run.directory.artifact_path.is_file():
        return None
    artifact = read_artifact(run.directory.artifact_path)
    if not run.score.is_of(artifact.info):
        return None
    facts = inspect_artifact(artifact)
    coded = [each for each in facts if each.code_bits is not None]
    plain = [each for each in facts if each.code_bits is None]
    weights, size = sum(each.weights for each in plain), sum(each.stored_bytes for each in plain)
    rows = [_row(each) for each in coded]
    rows.append((f"{len(plain)} other tensors", "float32", f"{weights:,}", f"{size:,.0f}", "", "", "", "", ""))
    rows.append(("header", "", "", f"{artifact.info.header_bytes:,}", "", "", "", "", ""))
    return section(
        "Tensors",
        element("p", MEANING, class_="quiet"),
        element("div", table(HEADINGS, rows, numeric=range(2, 8)), class_="wide"),
    )


def _row(facts: TensorFacts) -> tuple[Child, ...]:
    figures = (facts.bits_per_weight, facts.code_bits, facts.entropy_bits, facts.gaussian_bits)
    return (
        facts.name.removesuffix(".weight"),
        f"{facts.method} {facts.bits}",
        f"{facts.weights:,}",
        f"{facts.stored_bytes:,.0f}",
        *("" if figure is None else f"{figure:.3f}" for figure in figures),
        element("code", histogram_text(facts.histogram)),
    )
