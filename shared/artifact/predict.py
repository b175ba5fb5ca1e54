"""Prediction of an artifact's size before training: exact parts, fitted parts, and the error to expect.

Exact: the number of codes, scales and float32 values, and the header but for a few digits. Fitted: the
bits of a code after training (shared.artifact.predict_model). Outside the range of the fitted models the estimate
moves to Gaussian weights within three doublings of the batch: models trained with large batches are that.
The public baseline (17,059,912 parameters, 13,780 steps of 524,288 tokens, int8 and zlib, 15,863,489 bytes)
is within 0.5 % of Gaussian weights in its own format, below, so a large batch gets an excess of -0.03 bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.artifact.codec import block_sizes, compress_blocks
from shared.artifact.container import HEADER_QUALITY, HEADER_WINDOW, PREFIX
from shared.artifact.header import StoredSection, canonical_json, header_of
from shared.artifact.layout import Layout, SectionPlan, plan_layout
from shared.artifact.predict_calibration import CALIBRATION
from shared.artifact.predict_model import FEATURES, Calibration, fitted_role, role_features, role_of
from shared.artifact.quantise import storage_of, storages_of
from shared.artifact.read_rows import share_read
from shared.errors import ArtifactError
from shared.model.logits import packed_parameters
from shared.model.manifest import Parameter, parameter_manifest
from shared.quantisers import Float32, LowRank, Quantiser, Uniform
from shared.spec import Spec
from shared.spec.artifact import Codec

LARGE_BATCH_EXCESS_BITS = -0.03
LARGE_BATCH_OCTAVES = 3.0

# Stored bytes at a lower brotli quality over those at 10 and 11: mean over four trained models, each within
# QUALITY_BAND_FRAC of it.
QUALITY_FACTORS = {0: 1.044, 1: 1.014, 2: 1.014, 3: 1.014, 4: 1.006, 5: 1.017, 6: 1.017, 7: 1.017, 8: 1.018, 9: 1.024}
QUALITY_BAND_FRAC = 0.023

# Codes by row maximum under the range coder over those under brotli at 10 and 11: 0.974 and 0.975 in two runs of smoke,
# 0.986 in a model of 10 M weights (tests/bench/range_codec.py).
RANGE_FACTOR = 0.98
RANGE_BAND_FRAC = 0.008

# The row of tensors whose steps follow the loss.
LOSS_STEPS = "steps by loss"

FITTED_METHOD = "row_max"
# The fit is of row_max, whose codes depend on the largest weight of a row. What codes of the others have beyond those
# of Gaussian weights, mean over the matrices of models of the preset smoke; single roles are between 0 and -0.28. What
# the range coder gains more on these than on row_max is in it.
EXCESS_BITS = {"uniform": -0.20, LOSS_STEPS: 0.0, "sd_clip": -0.07, "clip_search": -0.10, "ternary": -0.02}
# How far packed smoke models are from that: SDClip 0.5 %, uniform steps 1.5 %.
EXCESS_BAND_FRAC = 0.02
# A method without a figure: where single roles of the others lie.
UNMEASURED_BAND_FRAC = 0.1
# Where steps follow the loss, the bits depend on how evenly a model uses its tensors.
LOSS_STEPS_BAND_FRAC = 0.4

# Of the small integers of low-rank corrections, stored in int8, what is left of their bytes.
CORRECTION_FRAC = 0.5

FITTED_NS_STEPS = 5

# A spec counts as outside the fitted models if this share of its matrix weights is.
OUTSIDE_FRAC = 0.1

# The fitted ranges are written with four digits.
ROUNDING = 1e-3

# A Huffman code of int6 symbols needs no more than 6 bits each; brotli adds its tables and at quality 0, which
# does not look for the best code, 0.9 %.
CODEC_SLACK_FRAC = 0.02
CODEC_SLACK_BLOCK_BYTES = 256

_BATCH = FEATURES.index("batch")
_DOSE = FEATURES.index("dose")


@dataclass(frozen=True)
class Prediction:
    """Bytes of the packed file. `low_bytes` to `high_bytes` is where the fit's own error puts it;
    `worst_case_bytes` holds for any weights: every code as wide as it may be, scales and floats
    incompressible. `how` is one sentence for people."""

    expected_bytes: int
    low_bytes: int
    high_bytes: int
    worst_case_bytes: int
    how: str


def predict_artifact_bytes(spec: Spec, steps: int | None = None, calibration: Calibration = CALIBRATION) -> Prediction:
    """The artifact of a spec after training. `steps` are the optimizer steps that will be made: by default
    training.steps, which is too many where the clock ends the run first. Raises ArtifactError below 1 step.
    """
    steps = spec.training.steps if steps is None else steps
    if steps < 1:
        raise ArtifactError(f"steps = {steps}: an artifact is predicted for 1 or more optimizer steps")
    rows = _rows(spec, steps, calibration)
    error = calibration.error_frac + _codec_band_frac(spec)

    def total_bytes(excess: Callable[[_Row], float]) -> float:
        sections = _section_bytes(spec, rows, excess, calibration)
        sections = {name: size * _codec_factor(spec, name) for name, size in sections.items()}
        return sum(sections.values()) + header_bytes(spec, sections)

    worst = worst_case_bytes(spec)
    reasons, early = _outside(spec, rows, calibration)
    expected = total_bytes(lambda row: row.excess_bits)
    others = {row.method for row in rows if row.section == "matrix.codes"}
    if FITTED_METHOD not in others:
        error = math.hypot(EXCESS_BAND_FRAC, _codec_band_frac(spec))
        how = f"Gaussian weights, less what trained ones of the preset smoke have under {' and '.join(sorted(others))}"
        if unmeasured := sorted(others - EXCESS_BITS.keys()):
            error, how = UNMEASURED_BAND_FRAC, f"Gaussian weights; no trained ones were measured under {unmeasured[0]}"
        if LOSS_STEPS in others:
            error, how = (
                LOSS_STEPS_BAND_FRAC,
                "steps follow the loss: between a model of minutes and one of 380 M symbols",
            )
        return _prediction(expected, expected * (1 - error), expected * (1 + error), worst, how)
    if not reasons:
        how = f"fit to {calibration.num_models} trained models; left out in turn, 95 % are within {error:.1%}"
        return _prediction(expected, expected * (1 - error), expected * (1 + error), worst, how)
    low = min(expected, total_bytes(lambda row: row.fitted_bits)) * (1 - 2 * error)
    high = max(expected, total_bytes(lambda row: max(0.0, row.fitted_bits))) * (1 + error)
    how = f"outside the {calibration.num_models} fitted models ({', '.join(reasons)}): from the nearest fitted model "
    how += "to Gaussian weights" if not early else "to codes of full width"
    return _prediction(expected, low, worst if early else high, worst, how)


def expected_payload_bytes(spec: Spec, steps: int, calibration: Calibration = CALIBRATION) -> dict[str, float]:
    """The expected size of every section of the artifact of a spec."""
    sections = _section_bytes(spec, _rows(spec, steps, calibration), lambda row: row.excess_bits, calibration)
    return {name: size * _codec_factor(spec, name) for name, size in sections.items()}


def worst_case_bytes(spec: Spec) -> int:
    """Size that no weights of a spec exceed: codes of full width, everything else incompressible."""
    layout = _plan(spec)
    widths: dict[str, int] = {}
    for entry in layout.tensors:
        for part, name, _ in entry.positions:
            if part.name == "codes":
                widths[name] = max(entry.storage.bits, widths.get(name, 0))
    sections = {}
    for section in layout.sections:
        width = widths.get(section.name, 8) / 8
        slack = CODEC_SLACK_BLOCK_BYTES * len(block_sizes(section.raw_bytes))
        sections[section.name] = section.raw_bytes * width * (1 + CODEC_SLACK_FRAC) + slack
    return round(sum(sections.values())) + header_bytes(spec, sections) + CODEC_SLACK_BLOCK_BYTES


def header_bytes(spec: Spec, sections: Mapping[str, float]) -> int:
    """Size of everything before the payload, from the stored size of every section.

    The real header is built and compressed; only the digits of its block sizes and checksums are stand-ins,
    which moves the compressed size by a few bytes.
    """
    layout = _plan(spec)
    stored = [_stand_in(section, sections[section.name], spec) for section in layout.sections]
    raw = canonical_json(header_of(spec, layout, stored).values).encode("ascii")
    return PREFIX.size + sum(map(len, compress_blocks(raw, HEADER_QUALITY, HEADER_WINDOW)))


@dataclass(frozen=True)
class _Row:
    """The tensors of one role, row length and quantiser: `count` weights in rows that are read, what a Gaussian code
    costs, the excess the fit gives within its range, and the excess that is used. `features` are not cut to it."""

    role: str
    method: str
    section: str
    count: int
    gaussian_bits: float
    fitted_bits: float
    excess_bits: float
    features: NDArray[np.float64]


def _rows(spec: Spec, steps: int, calibration: Calibration) -> list[_Row]:
    groups: dict[tuple[str, int, Quantiser], list[Parameter]] = {}
    for parameter in parameter_manifest(spec):
        storage = storage_of(parameter, spec.artifact)
        if not isinstance(storage, Float32):
            groups.setdefault((role_of(parameter, spec), parameter.shape[-1], storage), []).append(parameter)
    low, high = np.array(calibration.ranges).T
    rows = []
    for (role, row_length, coded), parameters in groups.items():
        first = parameters[0]
        features = role_features(spec, first, steps)
        intercept, *slopes = calibration.roles[fitted_role(role, first, spec, calibration.roles)]
        fitted = intercept + float(np.clip(features, low, high) @ slopes)
        large = 0.0
        if first.quantisation == "matrix":
            large = float(np.clip((features[_BATCH] - high[_BATCH]) / LARGE_BATCH_OCTAVES, 0.0, 1.0))
        gaussian = coded.gaussian_code_bits(row_length)
        # No code costs more than its width or less than nothing, whatever a line says.
        widest = float(np.log2(2 * coded.code_limit + 1)) - gaussian
        fitted = min(max(fitted, 0.1 - gaussian), widest)
        excess = (1 - large) * fitted + large * LARGE_BATCH_EXCESS_BITS
        method = LOSS_STEPS if isinstance(coded, Uniform) and coded.unit == "loss" else coded.method
        if method != FITTED_METHOD:
            fitted = excess = max(EXCESS_BITS.get(method, 0.0), 0.1 - gaussian)
        count = round(sum(parameter.count * share_read(parameter, spec, steps) for parameter in parameters))
        rows.append(_Row(role, method, f"{first.quantisation}.codes", count, gaussian, fitted, excess, features))
    return rows


def _section_bytes(
    spec: Spec, rows: Sequence[_Row], excess: Callable[[_Row], float], calibration: Calibration
) -> dict[str, float]:
    """Stored bytes of every section. Entropies of matrices become bytes by the measured ratio of the codec."""
    layout = _plan(spec)
    sections = {}
    for section in layout.sections:
        if section.name.endswith(".codes"):
            inside = [row for row in rows if row.section == section.name]
            bits = sum(row.count * (row.gaussian_bits + excess(row)) for row in inside)
            if section.name == "matrix.codes":
                mean_excess = sum(row.count * excess(row) for row in inside) / sum(row.count for row in inside)
                bits *= calibration.codec_ratio[0] + calibration.codec_ratio[1] * mean_excess
            sections[section.name] = bits / 8
        elif ".lqer_" in section.name and section.item_bytes == 1:
            # Every tensor with a rank has its place in the plan; only those with the largest errors keep a correction.
            ranked = sum(any(name == section.name for _, name, _ in entry.positions) for entry in layout.tensors)
            kept = min(1.0, spec.artifact.lqer_tensors / ranked)
            sections[section.name] = kept * CORRECTION_FRAC * section.raw_bytes
        else:
            frac = calibration.scale_frac if section.name.endswith(".scales") else calibration.raw_frac
            sections[section.name] = frac * section.raw_bytes
    return sections


def _codec_factor(spec: Spec, section: str) -> float:
    """Stored bytes of a section over those under brotli at quality 11."""
    if spec.artifact.codec == "range" and section.endswith(".codes"):
        return RANGE_FACTOR
    return QUALITY_FACTORS.get(spec.artifact.brotli_quality, 1.0)


def _codec_band_frac(spec: Spec) -> float:
    """How far the factor of the codes, which are most of the bytes, may be off."""
    if spec.artifact.codec == "range":
        return RANGE_BAND_FRAC
    return QUALITY_BAND_FRAC if spec.artifact.brotli_quality in QUALITY_FACTORS else 0.0


def _outside(spec: Spec, rows: Sequence[_Row], calibration: Calibration) -> tuple[list[str], bool]:
    """How a spec differs from the fitted models, one phrase each; and whether it is trained so briefly that initial
    values, which are not Gaussian, still show."""
    matrices = [row for row in rows if row.section == "matrix.codes"]
    shares = np.array([row.count for row in matrices]) / sum(row.count for row in matrices)
    features = np.array([row.features for row in matrices])
    low, high = np.array(calibration.ranges).T
    below, above = shares @ (features < low - ROUNDING), shares @ (features > high + ROUNDING)
    sides = {"below": below > OUTSIDE_FRAC, "above": above > OUTSIDE_FRAC}
    reasons = [
        f"{name.replace('_', ' ')} {side} theirs"
        for index, name in enumerate(FEATURES)
        for side, outside in sides.items()
        if outside[index]
    ]
    techniques = {
        "adapters": spec.model.lora.rank > 0,
        "weight decay": spec.optimizer.muon_weight_decay > 0 or spec.optimizer.adam_weight_decay > 0,
        f"ns_steps {spec.optimizer.ns_steps}": spec.optimizer.ns_steps != FITTED_NS_STEPS,
    }
    reasons += [name for name, used in techniques.items() if used]
    others = [row for row in rows if row.role not in calibration.roles]
    if sum(row.count for row in others) > OUTSIDE_FRAC * sum(row.count for row in rows):
        reasons.append(f"no {' or '.join(dict.fromkeys(_module(row.role, calibration) for row in others))} in them")
    return reasons, bool(sides["below"][_DOSE])


def _module(role: str, calibration: Calibration) -> str:
    """The module that a role without a fit belongs to; the role itself where others of its module have one."""
    module = role.rpartition(".")[0] or role
    return role if any(name.startswith(f"{module}.") for name in calibration.roles) else module


def _prediction(expected: float, low: float, high: float, worst: int, how: str) -> Prediction:
    high = min(high, worst)
    return Prediction(round(min(expected, high)), round(low), round(high), worst, how)


def _plan(spec: Spec) -> Layout:
    """The layout, with low-rank corrections where they take most bytes: which tensors get one follows from weights."""
    manifest = packed_parameters(spec)
    storages, sides = storages_of(manifest, spec.artifact), {each.name: sum(each.shape) for each in manifest}
    corrected = [name for name, storage in storages.items() if isinstance(storage, LowRank)]
    for name in sorted(corrected, key=lambda name: -sides[name])[spec.artifact.lqer_tensors :]:
        storages[name] = storages[name].grid
    return plan_layout(manifest, storages)


def _stand_in(plan: SectionPlan, stored_bytes: float, spec: Spec) -> StoredSection:
    """A section of about the given size, without its bytes. As real ones, no two blocks are of equal size: the header
    lists the sizes, and equal numbers would compress."""
    if spec.artifact.codec == "range" and plan.matrices:
        codec: Codec = "range"
        sizes = [max(1, round(stored_bytes))]
    else:
        codec = "brotli"
        parts = [stored_bytes * size / plan.raw_bytes for size in block_sizes(plan.raw_bytes)]
        sizes = [max(1, round(size + index * 6151 % 4001)) for index, size in enumerate(parts)]
    return StoredSection(plan, codec, tuple(sizes), hashlib.sha256(plan.name.encode()).hexdigest())
