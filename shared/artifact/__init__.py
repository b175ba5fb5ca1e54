"""The packed model: quantisation, the `.btw` container, the byte budget."""

from shared.artifact.budget import budget_report, code_bytes, entropy_bits
from shared.artifact.container import Artifact, ArtifactInfo, pack_bytes, read_artifact, unpack_bytes, write_artifact
from shared.artifact.quantise import dequantise, quantise

__all__ = [
    "Artifact",
    "ArtifactInfo",
    "budget_report",
    "code_bytes",
    "dequantise",
    "entropy_bits",
    "pack_bytes",
    "quantise",
    "read_artifact",
    "unpack_bytes",
    "write_artifact",
]
