"""The packed model: quantisation, the `.btw` container, the byte budget."""

from shared.artifact.budget import budget_report, code_bytes, entropy_bits
from shared.artifact.container import (
    Artifact,
    ArtifactInfo,
    assemble,
    pack_bytes,
    quantise_model,
    read_artifact,
    unpack_bytes,
    write_artifact,
    write_tensors,
)
from shared.artifact.quantise import dequantise, quantise

__all__ = [
    "Artifact",
    "ArtifactInfo",
    "assemble",
    "budget_report",
    "code_bytes",
    "dequantise",
    "entropy_bits",
    "pack_bytes",
    "quantise",
    "quantise_model",
    "read_artifact",
    "unpack_bytes",
    "write_artifact",
    "write_tensors",
]
