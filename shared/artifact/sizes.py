"""The size table: how many parameters fit a budget under which storage, before training (docs/techniques.md 12.6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from shared.artifact.predict import expected_payload_bytes, header_bytes
from shared.errors import SpecError
from shared.model import parameter_counts
from shared.spec import Spec, with_overrides

LAYER_FRACS = (0.5, 0.75, 1.25, 1.5, 2.0)
WIDTH_FRACS = (0.75, 1.25, 1.5)
MLP_MULTIPLE = 64
WIDTHS = (8, 7, 6, 5, 4)
STEPS = (0.15, 0.3, 0.6)


@dataclass(frozen=True)
class StoragePlan:
    """A way to store all matrices: its name in the table, and what it changes in a spec."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class SizedShape:
    """A shape with its parameters, and the predicted bytes of its artifact by the name of the storage."""

    shape: str
    parameters: int
    artifact_bytes: dict[str, int]


def storage_plans() -> list[StoragePlan]:
    """The spec's own settings, each width of row max, and steps of the uniform quantiser in deviations."""
    plans = [StoragePlan("as given", ())]
    # What other methods do not have: steps by the loss, and the rounding that they need.
    plain = ("artifact.matrix.rounding=nearest", "artifact.matrix.step_unit=rms")
    plans += [
        StoragePlan(f"int{bits}", ("artifact.matrix.method=row_max", f"artifact.matrix.bits={bits}", *plain))
        for bits in WIDTHS
    ]
    uniform = ("artifact.matrix.method=uniform", "artifact.embed.method=uniform", "artifact.head.method=uniform")
    steps = [(f"artifact.matrix.step={step}", "artifact.codec=range", *plain) for step in STEPS]
    return plans + [StoragePlan(f"step {step}", (*uniform, *more)) for step, more in zip(STEPS, steps, strict=True)]


@lru_cache(maxsize=8)
def size_table(spec: Spec) -> tuple[SizedShape, ...]:
    """A spec's shape, fewer and more layers, and narrower and wider ones, each under every storage."""
    rows = []
    for shape, overrides in _shapes(spec):
        try:
            scaled = with_overrides(spec, overrides)
        except SpecError:
            continue  # A wiring that names layers, or a head that does not divide, has no such shape.
        rows.append(SizedShape(shape, parameter_counts(scaled)["total"], _sizes(scaled)))
    return tuple(sorted(rows, key=lambda row: row.parameters))


def fitting_parameters(rows: Sequence[SizedShape], storage: str, limit_bytes: int) -> int:
    """About how many parameters fit, from the shape whose size is nearest to the limit."""
    nearest = min(rows, key=lambda row: abs(row.artifact_bytes[storage] - limit_bytes))
    return int(nearest.parameters * limit_bytes / nearest.artifact_bytes[storage])


def _shapes(spec: Spec) -> Iterator[tuple[str, list[str]]]:
    model = spec.model
    yield f"{model.num_layers} x {model.model_dim}, as given", []
    for frac in LAYER_FRACS:
        layers = round(model.num_layers * frac)
        if layers not in (0, model.num_layers) and not model.mlp_dims:
            yield f"{layers} x {model.model_dim}", [f"model.num_layers={layers}"]
    for frac in WIDTH_FRACS:
        # As many heads, each wider by whole pairs of dimensions.
        dim = max(1, round(model.model_dim * frac / (2 * model.num_heads))) * 2 * model.num_heads
        mlp = max(1, round(model.mlp_dim * frac / MLP_MULTIPLE)) * MLP_MULTIPLE
        yield (
            f"{model.num_layers} x {dim}",
            [
                f"model.model_dim={dim}",
                f"model.head_dim={dim // model.num_heads}",
                f"model.mlp_dim={mlp}",
            ],
        )


def _sizes(spec: Spec) -> dict[str, int]:
    header = 0
    found = {}
    for plan in storage_plans():
        stored = with_overrides(spec, list(plan.overrides))
        sections = expected_payload_bytes(stored, stored.training.steps)
        # It differs by some bytes between the storages, and building it takes longer than all the rest.
        header = header or header_bytes(stored, sections)
        found[plan.name] = round(sum(sections.values())) + header
    return found
