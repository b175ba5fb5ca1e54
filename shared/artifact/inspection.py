"""Where the bytes of an artifact sit, tensor by tensor (docs/techniques.md 12.3)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from shared.artifact.budget import entropy_bits
from shared.artifact.codec import compress_blocks
from shared.artifact.container import Artifact
from shared.artifact.curves import range_code_bits
from shared.artifact.layout import section_name
from shared.model.logits import packed_parameters
from shared.quantisers import QuantisedTensor, Quantiser, Uniform

HISTOGRAM_BARS = 15
HISTOGRAM_DEVIATIONS = 3.5
BARS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
# A tensor's share of its section is what it takes alone at this effort of brotli: of all fast ones the nearest to 11,
# within 1.6 % for every tensor of a trained model but one, whose rows repeat (7 %). At 5 to 9 peaked codes are 6 % off.
SHARE_QUALITY, SHARE_WINDOW = 4, 24


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of an artifact. `stored_bytes` is its share of the file, all of its parts; `code_bits` what the file
    takes for a code, `entropy_bits` the order-0 entropy of its codes and `gaussian_bits` that of the codes of Gaussian
    weights, each in bits per weight and None where there are no codes. `histogram` counts the codes in bars of equal
    width over 3.5 standard deviations to each side; the outermost hold what lies beyond."""

    name: str
    shape: tuple[int, ...]
    method: str
    bits: int
    stored_bytes: float
    code_bits: float | None
    entropy_bits: float | None
    gaussian_bits: float | None
    histogram: tuple[int, ...]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file per weight, all parts of the tensor included."""
        return 8 * self.stored_bytes / self.weights

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "weights": self.weights, "bits_per_weight": self.bits_per_weight}


@dataclass(frozen=True)
class Costs:
    """Bits per byte that storing each tensor alone costs, and all of them together, measured on `symbols` of training
    text."""

    by_tensor: dict[str, float]
    together: float
    symbols: int
    text: str

    @property
    def total(self) -> float:
        """The sum over tensors, which is `together` as far as costs add up."""
        return sum(self.by_tensor.values())

    def of(self, name: str) -> str:
        """The cost of a tensor in millionths, as a table has it; one that is stored exactly costs nothing."""
        return f"{1e6 * self.by_tensor.get(name, 0.0):.1f}"

    def __str__(self) -> str:
        return (
            f"loss: KL from the float weights on {self.symbols:,} symbols of training text ({self.text}); all together "
            f"cost {self.together:.6f} bits per byte, the sum over tensors is {self.total:.6f}"
        )


COST_HEADING = "loss, 1e-6 bpb"


def inspect_artifact(artifact: Artifact) -> list[TensorFacts]:
    """The facts of every tensor, in manifest order. Their bytes and the header's add up to the file."""
    sections = {p.name: p.quantisation for p in packed_parameters(artifact.spec)}
    # Files of version 1 name no codec.
    codecs = {row["name"]: row.get("codec", "brotli") for row in artifact.header["sections"]}
    shares: dict[str, dict[str, float]] = {}
    for name, tensor in artifact.tensors.items():
        for part in tensor.storage.parts(tensor.shape):
            section = section_name(sections[name], tensor.storage, part)
            shares.setdefault(section, {})[name] = _alone_bytes(part.name, tensor, codecs.get(section, "brotli"))
    stored: dict[str, dict[str, float]] = {name: {} for name in artifact.tensors}
    for section, sizes in shares.items():
        whole = artifact.info.section_bytes[section][1] if section in artifact.info.section_bytes else 0
        for name, size in sizes.items():
            stored[name][section.partition(".")[2]] = whole * size / sum(sizes.values())
    return [_facts(name, tensor, stored[name]) for name, tensor in artifact.tensors.items()]


def histogram_text(counts: tuple[int, ...]) -> str:
    """Counts as bars of text, one character each, the highest as high as a line; what is not empty shows."""
    most = max(counts, default=0)
    return "".join(BARS[math.ceil(8 * count / most)] if count else " " for count in counts)


def _facts(name: str, tensor: QuantisedTensor, stored: dict[str, float]) -> TensorFacts:
    storage, size = tensor.storage, sum(stored.values())
    codes = tensor.parts.get("codes")
    if codes is None or codes.size == 0:
        return TensorFacts(name, tensor.shape, storage.method, storage.bits, size, None, None, None, ())
    return TensorFacts(
        name,
        tensor.shape,
        storage.method,
        storage.bits,
        size,
        8 * stored["codes"] / codes.size,
        entropy_bits(codes),
        _gaussian_bits(tensor),
        _histogram(codes),
    )


def _gaussian_bits(tensor: QuantisedTensor) -> float:
    """The entropy of Gaussian weights under the tensor's rule. Where steps are chosen in deviations a file holds the
    steps alone, so the deviation is taken from what is stored: of each row for SDClip, of the tensor for uniform."""
    storage = cast(Quantiser, tensor.storage)
    if storage.method not in ("uniform", "sd_clip"):
        return storage.gaussian_code_bits(tensor.shape[-1])
    squares = np.square(storage.decode(tensor.shape, tensor.parts).astype(np.float64))
    rms = np.sqrt(squares.mean(axis=-1, keepdims=True) if storage.method == "sd_clip" else squares.mean())
    steps, rms = np.broadcast_arrays(storage.steps(tensor.shape, tensor.parts), rms)
    used = (steps > 0) & (rms > 0)
    if not used.any():
        return 0.0
    step, states = float(np.exp(np.log(steps[used] / rms[used]).mean())), storage.stored_settings.get("trellis", 0)
    return Uniform(step, trellis=int(states)).gaussian_code_bits(tensor.shape[-1])


def _alone_bytes(part: str, tensor: QuantisedTensor, codec: str) -> float:
    """What one part of a tensor takes when it is compressed on its own, by which its section's bytes are shared out."""
    values = tensor.parts[part]
    if part != "codes" or not values.size:
        return float(values.nbytes)
    if codec == "range":
        return range_code_bits(tensor) / 8
    return float(sum(map(len, compress_blocks(values.tobytes(), SHARE_QUALITY, SHARE_WINDOW))))


def _histogram(codes: NDArray[np.int8]) -> tuple[int, ...]:
    """The number of codes in each bar. A bar is a whole number of codes wide, so that all hold equally many."""
    wide = codes.astype(np.int64).reshape(-1)
    reach = min(HISTOGRAM_DEVIATIONS * float(wide.std()), float(np.abs(wide).max()))
    width = max(1, math.ceil((2 * reach + 1) / HISTOGRAM_BARS))
    # Odd, so that the bar of zero is symmetric.
    width += 1 - width % 2
    side = HISTOGRAM_BARS // 2
    bars = np.clip(np.floor_divide(wide + width // 2, width), -side, side) + side
    return tuple(np.bincount(bars, minlength=HISTOGRAM_BARS).tolist())
