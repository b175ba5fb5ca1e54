"""The position of every byte of the payload: a pure function of the parameter manifest and the storage of each tensor.

The writer follows this plan and the reader recomputes it from the storages that the header names, so a file cannot say
anything about offsets, sizes or overlaps that these do not already imply; its table is checked against the plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shared.artifact.range_codec import CodedShape
from shared.errors import ArtifactError
from shared.model.manifest import Parameter, QuantisationClass
from shared.quantisers import Float32, Part, QuantisedTensor, Storage

RAW = "raw"
"""Name of the section of tensors that are not quantised, whatever their class."""

CODES = "codes"
"""Name of the part of integer codes, int8."""

GROUPS = ("matrix", "embedding", "head", RAW)


@dataclass(frozen=True)
class TensorEntry:
    """One tensor and the offset, in bytes, of each of its parts within the section of that part."""

    name: str
    shape: tuple[int, ...]
    quantisation: QuantisationClass
    storage: Storage
    offsets_bytes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def positions(self) -> list[tuple[Part, str, int]]:
        """Each part, the section that it lies in, and its offset there."""
        parts = self.storage.parts(self.shape)
        sections = (section_name(self.quantisation, self.storage, part) for part in parts)
        return list(zip(parts, sections, self.offsets_bytes, strict=True))

    def to_json(self) -> dict[str, Any]:
        """The row of the header's tensor table: what is stored, by which settings, and where each part of it begins."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "class": self.quantisation,
            "quantiser": dict(self.storage.stored_settings),
            "offsets": list(self.offsets_bytes),
        }


@dataclass(frozen=True)
class SectionPlan:
    """A run of equal items: the same part of all tensors of a class; its size before compression.

    `matrices`: of a section of codes the matrices in it, one for each tensor; else none.
    """

    name: str
    item_bytes: int
    raw_bytes: int
    matrices: tuple[CodedShape, ...] = ()


@dataclass(frozen=True)
class Layout:
    """The payload plan: tensors in manifest order; sections that are not empty, in file order."""

    tensors: tuple[TensorEntry, ...]
    sections: tuple[SectionPlan, ...]

    @property
    def raw_bytes(self) -> int:
        """Payload size before compression."""
        return sum(section.raw_bytes for section in self.sections)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(entry.count for entry in self.tensors)


def section_name(quantisation: QuantisationClass, storage: Storage, part: Part) -> str:
    """The section of one part of a tensor."""
    return f"{RAW if isinstance(storage, Float32) else quantisation}.{part.name}"


def plan_layout(manifest: Iterable[Parameter], storages: Mapping[str, Storage]) -> Layout:
    """Place the tensors of a manifest one after the other within the sections of their classes.

    In the file all classes' first parts come first, then their second parts and so on, then what is not quantised.
    """
    sections: dict[str, SectionPlan] = {}
    matrices: dict[str, list[CodedShape]] = {}
    ranks: dict[str, tuple[bool, int, int, str]] = {}
    entries = []
    for parameter in manifest:
        storage, offsets = storages[parameter.name], []
        for index, part in enumerate(storage.parts(parameter.shape)):
            name = section_name(parameter.quantisation, storage, part)
            used = sections[name].raw_bytes if name in sections else 0
            assert name not in sections or sections[name].item_bytes == part.item_bytes, (
                f"{name} has items of two sizes"
            )
            sections[name] = SectionPlan(name, part.item_bytes, used + part.count * part.item_bytes)
            group = name.partition(".")[0]
            ranks.setdefault(name, (group == RAW, index, GROUPS.index(group), part.name))
            offsets.append(used)
            if part.name == CODES and part.count:
                matrices.setdefault(name, []).append(_coded_shape(part, storage))
        entries.append(TensorEntry(parameter.name, parameter.shape, parameter.quantisation, storage, tuple(offsets)))
    in_order = sorted(sections.values(), key=lambda section: ranks[section.name])
    kept = (replace(plan, matrices=tuple(matrices.get(plan.name, ()))) for plan in in_order if plan.raw_bytes)
    return Layout(tuple(entries), tuple(kept))


def _coded_shape(part: Part, storage: Storage) -> CodedShape:
    """The matrix of a tensor's codes: a row is the last axis."""
    states = storage.stored_settings.get("trellis", 0)
    return CodedShape(math.prod(part.shape[:-1]), part.shape[-1], int(states))


def lay_out(layout: Layout, tensors: Mapping[str, QuantisedTensor]) -> dict[str, bytes]:
    """The raw bytes of every section, little-endian, 16 and 32-bit items as byte planes."""
    content: dict[str, list[bytes]] = {section.name: [] for section in layout.sections}
    for entry in layout.tensors:
        for part, section, _ in entry.positions:
            content[section].append(tensors[entry.name].parts[part.name].astype(part.dtype).tobytes())
    return {
        section.name: to_byte_planes(b"".join(content[section.name]), section.item_bytes) for section in layout.sections
    }


def pick_up(layout: Layout, sections: Mapping[str, bytes]) -> dict[str, QuantisedTensor]:
    """The tensors out of raw sections whose sizes are those of the plan, in manifest order.

    Raises ArtifactError for a code out of range, a bad scale or a value that is not finite: no honest
    writer makes these, and a model must never run on them.
    """
    plain = {plan.name: from_byte_planes(sections[plan.name], plan.item_bytes) for plan in layout.sections}
    tensors = {}
    for entry in layout.tensors:
        parts = {
            part.name: np.frombuffer(plain[section], part.dtype, part.count, offset_bytes).reshape(part.shape)
            for part, section, offset_bytes in entry.positions
        }
        if not entry.storage.is_valid(parts):
            bits = entry.storage.bits
            raise ArtifactError(f"tensor {entry.name}: holds values that int{bits} weights cannot have")
        tensors[entry.name] = QuantisedTensor(entry.storage, entry.shape, parts)
    return tensors


def to_byte_planes(raw: bytes, item_bytes: int) -> bytes:
    """First bytes of all items, then second bytes and so on: the exponents end up together and compress."""
    if item_bytes == 1:
        return raw
    return np.frombuffer(raw, np.uint8).reshape(-1, item_bytes).T.tobytes()


def from_byte_planes(planes: bytes, item_bytes: int) -> bytes:
    """Inverse of `to_byte_planes`."""
    if item_bytes == 1:
        return planes
    return np.frombuffer(planes, np.uint8).reshape(item_bytes, -1).T.tobytes()
