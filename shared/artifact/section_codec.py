"""The codecs of a section of the payload: brotli for any, or the range coder for codes (docs/techniques.md 11.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from shared.artifact import range_codec
from shared.artifact.codec import block_sizes, compress_blocks, decompress_bounded, num_blocks
from shared.artifact.layout import SectionPlan
from shared.spec import ArtifactSpec
from shared.spec.artifact import Codec

CODECS: tuple[Codec, ...] = get_args(Codec)

# Repetitions that only brotli sees show at this quality; it reads 50 MB a second.
COMPARED_QUALITY = 5


def allowed_codecs(plan: SectionPlan) -> tuple[Codec, ...]:
    """The codecs that a section may have."""
    return CODECS if plan.matrices else ("brotli",)


def stored_blocks(plan: SectionPlan, codec: Codec) -> int:
    """The number of compressed blocks of a section."""
    return num_blocks(plan.raw_bytes) if codec == "brotli" else 1


def compress_section(plan: SectionPlan, raw: bytes, spec: ArtifactSpec) -> tuple[Codec, list[bytes]]:
    """The compressed blocks of a section and the codec they are of: the one that the spec names where it may, unless
    brotli is shorter, as it is for codes that no weights have."""
    if spec.codec == "range" and plan.matrices:
        stored = _range_coded(plan, raw)
        if len(stored) <= sum(map(len, compress_blocks(raw, COMPARED_QUALITY, spec.brotli_window))):
            return "range", [stored]
    return "brotli", compress_blocks(raw, spec.brotli_quality, spec.brotli_window)


def decompress_section(plan: SectionPlan, codec: Codec, blocks: Sequence[bytes]) -> bytes:
    """The raw bytes of a section, of the size in the plan whatever the blocks hold. Raises ArtifactError."""
    if codec == "range":
        return b"".join(codes.tobytes() for codes in range_codec.decode(blocks[0], plan.matrices))
    sizes = block_sizes(plan.raw_bytes)
    return b"".join(decompress_bounded(block, size) for block, size in zip(blocks, sizes, strict=True))


def _range_coded(plan: SectionPlan, raw: bytes) -> bytes:
    matrices, start = [], 0
    for shape in plan.matrices:
        codes = np.frombuffer(raw, np.int8, shape.size, start)
        matrices.append(codes.reshape(shape.rows, shape.columns))
        start += shape.size
    return range_codec.encode(matrices, [shape.states for shape in plan.matrices])
